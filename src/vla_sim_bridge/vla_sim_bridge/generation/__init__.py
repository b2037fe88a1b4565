"""Generation of demonstrations from scripted experts and MimicGen."""
