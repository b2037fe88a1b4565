"""Tests of lock step: matching answers to frames, resending, giving up."""

from vla_sim_bridge.ros.lock_step import FIRST_RESEND, RESENDS, LockStep, Verdict

TEXT = "stack them"


def lock(started=True):
    return LockStep(action_timeout=10.0, start_timeout=120.0, started=started)


def test_the_answer_to_the_frame_is_executed_once():
    s = lock()
    s.sent(1, now=0.0)
    assert s.judge(1, TEXT, TEXT, 0.05) is Verdict.EXECUTE
    assert s.round_trip == 0.05 and not s.waiting
    assert s.judge(1, TEXT, TEXT, 0.06) is Verdict.WAIT
    assert s.ignored == 1


def test_answers_to_other_frames_are_ignored_and_counted():
    s = lock()
    s.sent(5, 0.0)
    for stamp in (4, 6, 0):
        assert s.judge(stamp, TEXT, TEXT, 0.1) is Verdict.WAIT
    assert s.ignored == 3 and s.waiting


def test_any_copy_of_the_frame_may_be_answered_and_time_counts_from_its_own_sending():
    s = lock()
    s.sent(1, 0.0)
    s.sent(2, 3.0)
    assert s.judge(1, TEXT, TEXT, 4.0) is Verdict.EXECUTE
    assert s.round_trip == 4.0
    assert s.judge(2, TEXT, TEXT, 4.1) is Verdict.WAIT  # the late second answer does no harm


def test_a_wrong_instruction_asks_for_a_copy_and_for_fewer_and_fewer():
    s = lock()
    s.sent(1, 0.0)
    pauses, now = [], 0.0
    for stamp in range(1, 8):
        assert s.judge(stamp, "old text", TEXT, now) is Verdict.WAIT
        begun = now
        while s.poll(now) is Verdict.WAIT:
            now += 0.005
        assert s.poll(now) is Verdict.RESEND
        pauses.append(now - begun)
        s.sent(stamp + 1, now)
    assert pauses == sorted(pauses) and pauses[0] < 0.05 and pauses[-1] > 0.5
    assert s.mismatched == 7 and s.other_instruction == "old text"
    assert s.judge(8, TEXT, TEXT, now) is Verdict.EXECUTE


def test_a_model_that_never_gets_the_instruction_right_is_too_late():
    s, now, stamp = lock(), 0.0, 1
    s.sent(stamp, now)
    for _ in range(100_000):
        verdict = s.poll(now)
        if verdict is Verdict.TOO_LATE:
            break
        if verdict is Verdict.RESEND:
            stamp += 1
            s.sent(stamp, now)
            s.judge(stamp, "other", TEXT, now)
        now += 0.01
    assert verdict is Verdict.TOO_LATE and 10.0 <= now < 10.1
    assert stamp < 20  # copies are few


def test_silence_brings_a_few_copies_and_then_the_end():
    s, now, stamp, copies = lock(), 0.0, 1, 0
    s.sent(stamp, now)
    while (verdict := s.poll(now)) is not Verdict.TOO_LATE:
        if verdict is Verdict.RESEND:
            copies, stamp = copies + 1, stamp + 1
            s.sent(stamp, now)
        now += 0.01
    assert copies == RESENDS and 10.0 <= now < 10.1
    assert s.waited(now) == now


def test_before_the_first_answer_patience_is_longer_and_copies_are_regular():
    s = lock(started=False)
    s.sent(1, 0.0)
    assert s.poll(FIRST_RESEND - 0.01) is Verdict.WAIT
    assert s.poll(FIRST_RESEND) is Verdict.RESEND
    s.sent(2, FIRST_RESEND)
    assert s.poll(11.0) is Verdict.RESEND  # not TOO_LATE yet
    assert s.poll(120.0) is Verdict.TOO_LATE
    assert s.judge(2, TEXT, TEXT, 121.0) is Verdict.EXECUTE
    assert s.timeout == 10.0


def test_a_model_that_comes_up_gets_a_copy_at_once():
    s = lock(started=False)
    s.sent(1, 0.0)
    s.resend_now(0.2)
    assert s.poll(0.2) is Verdict.RESEND


def test_the_next_frame_starts_a_new_count():
    s = lock()
    s.sent(1, 0.0)
    s.judge(1, "x", TEXT, 0.1)
    s.judge(1, TEXT, TEXT, 0.2)
    s.sent(2, 9.0)
    assert s.other_instruction == ""
    assert s.poll(10.5) is Verdict.WAIT
    assert s.poll(19.0) is Verdict.TOO_LATE


def test_withdrawn_frames_await_nothing():
    s = lock()
    s.sent(1, 0.0)
    s.withdraw()
    assert s.poll(1e6) is Verdict.WAIT and s.waited(1e6) == 0.0
    assert s.judge(1, TEXT, TEXT, 1.0) is Verdict.WAIT
