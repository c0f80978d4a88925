"""What happens to a message on its way: layers of compressors and error feedback, and its exact size in bytes.

A layer sees one flat vector [d], its own memory and its own random numbers. The channel knows no algorithm, no model
and no kind of run: what a vector means, and who sends it when, is decided elsewhere.
"""
