"""Membank. How threads wait is settled first, because torch asks only when it is loaded."""

from app.process import threads

threads.settle()
