"""What happens to a message on its way: layers of compressors and feedback, exact sizes on the wire."""
