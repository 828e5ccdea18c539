"""Own videos: files with any names, with a table of captions, with subtitles beside them, or with nothing."""
