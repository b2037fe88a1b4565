"""`StudioSettings`: options of `vla studio` and parameters of the studio's node."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vla_inference.errors import VlaError
from vla_inference.options import Holds, check_options, option
from vla_inference.serving.network import is_loopback, read_key
from vla_inference.teleop.settings import Speeds
from vla_studio.speech.recogniser import AUTO, wanted


@dataclass(frozen=True, kw_only=True)
class StudioSettings(Speeds):
    host: str = option(
        "127.0.0.1", "Address to listen on; addresses other than loopback need a token."
    )
    port: int = option(8080, "Port; 0: any free one, which is printed.", low=0, high=65535)
    token_file: str = option(
        "",
        "File with the token by which one-time links are made; empty: no log-in.",
        holds=Holds.PATH,
    )
    tls_cert: str = option("", "Certificate (PEM), for https.", holds=Holds.PATH)
    tls_key: str = option("", "Its private key (PEM).", holds=Holds.PATH)
    cameras: tuple[str, ...] = option(("image",), "Topics of the images to show.")
    image_transport: str = option(
        "raw",
        "raw (each topic) or compressed (each topic/compressed)",
        choices=("raw", "compressed"),
    )
    quality: int = option(80, "JPEG quality of the images in the page.", low=10, high=95)
    max_image_rate: float = option(
        10.0,
        "Images per second and camera in the page at most; each costs the browser's machine work.",
        low=1,
        high=120,
    )
    presets: tuple[str, ...] = option((), "Instructions to offer, by commas.")
    hold_timeout: float = option(
        0.15,
        "Seconds without a sign of the page until a held enable ends.",
        low=0.05,
        high=0.2,
    )
    max_clients: int = option(16, "Maximum number of open pages.", low=1, high=256)
    max_rate: float = option(
        200.0, "Messages per second and page; a page that sends more is closed.", low=50, high=1e4
    )
    verdicts: str = option(
        "", "File that gets verdicts of episodes, as JSON lines; empty: none.", holds=Holds.PATH
    )
    preset: str = option(
        "",
        "Preset, a YAML file or the name of one in config/studio: what is started beside the "
        "page, and the instructions that it offers.",
        holds=Holds.PATH,
    )
    results: str = option(
        "", "Folder of runs whose reports are shown; empty: none.", holds=Holds.PATH
    )
    data: str = option("", "Folder of datasets to browse; empty: none.", holds=Holds.PATH)
    models: str = option(
        "",
        "Folder of checkpoints that can be compared with datasets; empty: the shipped ones.",
        holds=Holds.PATH,
    )
    speech: str = option(
        AUTO,
        "auto: spoken instructions where the packages for it are installed; off; or a folder of "
        "Whisper weights in CTranslate2's format.",
        holds=Holds.NAME_OR_PATH,
    )
    countdown: int = option(3, "Seconds until a spoken instruction takes effect.", low=1, high=30)
    browser: bool = option(False, "Open the page in a browser, where there is one.")

    def check(self) -> None:
        """Raises VlaError where the options do not go together."""
        check_options(self)
        if not self.token_file and not is_loopback(self.host):
            raise VlaError(
                f"{self.host} can be reached from other machines",
                "give a token file, or listen on 127.0.0.1 and use an ssh tunnel",
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise VlaError("TLS certificate and key belong together", "give both or none")
        wanted(self.speech)

    def token(self) -> str:
        """The token that one-time links are made by; empty: nobody has to log in."""
        return read_key(Path(self.token_file)) if self.token_file else ""
