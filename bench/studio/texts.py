"""What the voices of `speech.py` say."""

from __future__ import annotations

SENTENCES = (
    "stack the red block on the green block",
    "stack the green block on the red block",
    "stack the blue block on the yellow block",
    "put the red cube on top of the green cube",
    "put the green cube on top of the red cube",
    "put the yellow cube on top of the blue cube",
    "place the red block onto the green one",
    "place the blue block onto the red one",
    "pick up the red cube and set it on the green cube",
    "pick up the blue cube and set it on the yellow cube",
    "lift the cube",
    "lift the red cube",
    "raise the block from the table",
    "open the door",
    "close the door",
    "turn the handle and pull the door open",
    "put the square nut on the square peg",
    "put the round nut on the round peg",
    "put the milk into its bin",
    "put the bread into its bin",
    "put the cereal box into its bin",
    "put the can into its bin",
    "open the top drawer and put the bowl inside",
    "open the middle drawer of the cabinet",
    "put the bowl on the stove",
    "put the bowl on the plate",
    "put the wine bottle on top of the cabinet",
    "put the wine bottle on the rack",
    "push the plate to the front of the stove",
    "turn on the stove",
    "turn off the stove",
    "put the cream cheese in the bowl",
    "pick up the alphabet soup and place it in the basket",
    "pick up the tomato sauce and place it in the basket",
    "pick up the orange juice and place it in the basket",
    "pick up the chocolate pudding and place it in the basket",
    "put the black bowl next to the plate on the plate",
    "put both moka pots on the stove",
    "put the yellow and white mug in the microwave and close it",
    "wipe the table with the sponge",
)
LONE = "stop"
PHRASES = ("stop now", "please stop", "stop the robot", "no no stop")
# Said alone, none is "stop".
OTHER_WORDS = ("step", "shop", "stoop", "star", "drop", "stack", "go on", "start", "yes", "hello")

# The first pages of eight books whose copyright has run out; nobody says "stop" in them.
PROSE = (
    # Lewis Carroll, Alice's Adventures in Wonderland
    """Alice was beginning to get very tired of sitting by her sister on the bank, and of having
    nothing to do. Once or twice she had peeped into the book her sister was reading, but it
    had no conversations in it, and what is the use of a book, thought Alice, without
    conversations? So she was considering in her own mind, as well as she could, for the hot
    day made her feel very sleepy and stupid, whether the pleasure of making a daisy chain
    would be worth the trouble of getting up and picking the daisies, when suddenly a white
    rabbit with pink eyes ran close by her. There was nothing so very remarkable in that; nor
    did Alice think it so very much out of the way to hear the rabbit say to itself, Oh dear!
    Oh dear! I shall be late! But when the rabbit actually took a watch out of its waistcoat
    pocket, and looked at it, and then hurried on, Alice started to her feet.""",
    # L. Frank Baum, The Wonderful Wizard of Oz
    """Dorothy lived in the midst of the great Kansas prairies, with Uncle Henry, who was a
    farmer, and Aunt Em, who was the farmer's wife. Their house was small, for the lumber to
    build it had to be carried by wagon many miles. There were four walls, a floor and a roof,
    which made one room; and this room contained a rusty looking cookstove, a cupboard for the
    dishes, a table, three or four chairs, and the beds. Uncle Henry and Aunt Em had a big bed
    in one corner, and Dorothy a little bed in another corner. There was no garret at all, and
    no cellar, except a small hole dug in the ground, called a cyclone cellar, where the
    family could go in case one of those great whirlwinds arose, mighty enough to crush any
    building in its path. It was reached by a trap door in the middle of the floor, from which
    a ladder led down into the small, dark hole. When Dorothy stood in the doorway and looked
    around, she could see nothing but the great gray prairie on every side.""",
    # Jane Austen, Pride and Prejudice
    """It is a truth universally acknowledged, that a single man in possession of a good fortune,
    must be in want of a wife. However little known the feelings or views of such a man may be
    on his first entering a neighbourhood, this truth is so well fixed in the minds of the
    surrounding families, that he is considered the rightful property of some one or other of
    their daughters. My dear Mr. Bennet, said his lady to him one day, have you heard that
    Netherfield Park is let at last? Mr. Bennet replied that he had not. But it is, returned
    she; for Mrs. Long has just been here, and she told me all about it. Mr. Bennet made no
    answer. Do you not want to know who has taken it? cried his wife impatiently. You want to
    tell me, and I have no objection to hearing it. This was invitation enough.""",
    # Arthur Conan Doyle, A Scandal in Bohemia
    """To Sherlock Holmes she is always the woman. I have seldom heard him mention her under any
    other name. In his eyes she eclipses and predominates the whole of her sex. It was not
    that he felt any emotion akin to love for Irene Adler. All emotions, and that one
    particularly, were abhorrent to his cold, precise but admirably balanced mind. He was, I
    take it, the most perfect reasoning and observing machine that the world has seen, but as
    a lover he would have placed himself in a false position. He never spoke of the softer
    passions, save with a gibe and a sneer. They were admirable things for the observer,
    excellent for drawing the veil from men's motives and actions. But for the trained
    reasoner to admit such intrusions into his own delicate and finely adjusted temperament
    was to introduce a distracting factor which might throw a doubt upon all his mental
    results.""",
    # H. G. Wells, The Time Machine
    """The Time Traveller, for so it will be convenient to speak of him, was expounding a
    recondite matter to us. His pale grey eyes shone and twinkled, and his usually pale face
    was flushed and animated. The fire burned brightly, and the soft radiance of the
    incandescent lights in the lilies of silver caught the bubbles that flashed and passed in
    our glasses. Our chairs, being his patents, embraced and caressed us rather than submitted
    to be sat upon, and there was that luxurious after dinner atmosphere, when thought runs
    gracefully free of the trammels of precision. And he put it to us in this way, marking the
    points with a lean forefinger, as we sat and lazily admired his earnestness over this new
    paradox, as we thought it, and his fecundity. You must follow me carefully. I shall have
    to controvert one or two ideas that are almost universally accepted.""",
    # Herman Melville, Moby Dick
    """Call me Ishmael. Some years ago, never mind how long precisely, having little or no money
    in my purse, and nothing particular to interest me on shore, I thought I would sail about
    a little and see the watery part of the world. It is a way I have of driving off the
    spleen and regulating the circulation. Whenever I find myself growing grim about the
    mouth; whenever it is a damp, drizzly November in my soul; whenever I find myself
    involuntarily pausing before coffin warehouses, and bringing up the rear of every funeral
    I meet; then, I account it high time to get to sea as soon as I can. This is my substitute
    for pistol and ball. With a philosophical flourish Cato throws himself upon his sword; I
    quietly take to the ship. There is nothing surprising in this. If they but knew it, almost
    all men in their degree, some time or other, cherish very nearly the same feelings towards
    the ocean with me.""",
    # Charles Dickens, A Tale of Two Cities
    """It was the best of times, it was the worst of times, it was the age of wisdom, it was the
    age of foolishness, it was the epoch of belief, it was the epoch of incredulity, it was
    the season of Light, it was the season of Darkness, it was the spring of hope, it was the
    winter of despair, we had everything before us, we had nothing before us, we were all
    going direct to Heaven, we were all going direct the other way. There were a king with a
    large jaw and a queen with a plain face, on the throne of England; there were a king with
    a large jaw and a queen with a fair face, on the throne of France. In both countries it
    was clearer than crystal to the lords of the State preserves of loaves and fishes, that
    things in general were settled for ever.""",
    # Kenneth Grahame, The Wind in the Willows
    """The Mole had been working very hard all the morning, spring cleaning his little home.
    First with brooms, then with dusters; then on ladders and steps and chairs, with a brush
    and a pail of whitewash; till he had dust in his throat and eyes, and splashes of
    whitewash all over his black fur, and an aching back and weary arms. Spring was moving in
    the air above and in the earth below and around him, penetrating even his dark and lowly
    little house with its spirit of divine discontent and longing. It was small wonder, then,
    that he suddenly flung down his brush on the floor, said Bother! and O blow! and also Hang
    spring cleaning! and bolted out of the house without even waiting to put on his coat.
    Something up above was calling him imperiously, and he made for the steep little tunnel
    which answered in his case to the gravelled carriage drive owned by animals whose
    residences are nearer to the sun and air. So he scraped and scratched and scrabbled and
    scrooged, and then he scrooged again and scrabbled and scratched and scraped, working
    busily with his little paws.""",
)
