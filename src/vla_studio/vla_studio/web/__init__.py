"""The studio's web server: who may come in, what the page is told and may ask for."""
