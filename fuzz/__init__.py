"""What anybody on the internet may send, tried: targets, a coverage-guided fuzzer for them, a storm.

``make fuzz`` runs every target under libFuzzer (Linux, atheris); ``python -m fuzz.storm`` sends a million
malformed inputs at a running server. See docs/fuzzing.md.
"""
