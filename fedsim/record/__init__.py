"""What a run leaves behind and goes on from: its folder, its history, its checkpoints, where its numbers come from."""
