"""Fetches files from HTTP servers and object stores, whatever those answer: bounded in size and time, and checked."""
