"""`vla listen`: what is said to this machine's microphone, or in a file, as text in the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vla_inference.system.workspace import needs_ros
from vla_studio.presets import load_preset
from vla_studio.speech.recogniser import AUTO, open_recogniser


def listen(
    file: Annotated[
        Path | None, typer.Option(help="WAV file to hear instead of a microphone.")
    ] = None,
    device: Annotated[str, typer.Option(help="Microphone, by part of its name.")] = "",
    speech: Annotated[
        str,
        typer.Option(help="auto: packaged weights, or a folder of Whisper weights (CTranslate2)."),
    ] = AUTO,
    preset: Annotated[
        str, typer.Option(help="Preset of the studio: its instructions are sentences in use.")
    ] = "",
    sentence: Annotated[
        list[str] | None, typer.Option(help="Another sentence in use; may be repeated.")
    ] = None,
    instruct: Annotated[
        bool,
        typer.Option(help="Publish sentences in use as instructions, after the countdown."),
    ] = False,
    countdown: Annotated[
        int, typer.Option(min=1, max=30, help="Seconds until an instruction takes effect.")
    ] = 3,
    namespace: Annotated[str, typer.Option(help="Namespace of the robot's nodes.")] = "",
) -> int:
    """Publish what is said as text; the word stop stops the robot."""
    from vla_studio.speech.audio import read_audio

    source = str(device) if file is None else read_audio(file)
    offered = load_preset(preset)
    prompts = [text for each in offered.auto_prompt for text in each.instructions]
    sentences = [*offered.instructions, *prompts, *(sentence or ())]
    recogniser = open_recogniser(speech)
    try:
        from vla_studio.ros.listen import listen as hear
    except ImportError as error:
        raise needs_ros(error) from error
    return hear(recogniser, source, sentences, countdown if instruct else 0, namespace)
