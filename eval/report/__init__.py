"""Results for people: Markdown, HTML pages with playable clips, comparisons of two runs."""
