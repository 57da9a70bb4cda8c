"""The web page and HTTP endpoint: limits, one computing thread behind a bounded queue, answers, and the page."""
