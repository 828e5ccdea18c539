"""Scripts for developers of this repository; the installed packages do not use them."""
