"""What a run leaves behind and goes on from: its folder, its history, its checkpoints, where its numbers come from.

It takes records, figures and trees of arrays as they are and writes them so that nothing already written is lost. It
knows no algorithm, and never decides what is measured or when.
"""
