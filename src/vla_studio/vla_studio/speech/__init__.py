"""Spoken instructions: from a microphone's samples to a sentence, or to a stop. Optional."""
