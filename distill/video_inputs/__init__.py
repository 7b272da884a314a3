"""How networks see a clip, one file each: drop a file here with a ``VideoInput`` registered in ``VIDEO_INPUTS``."""
