"""The studio: a web page to watch and operate a robot that a VLA model drives."""
