"""Student to NIR, NIR to ONNX, and the one view of a NIR graph that everything below uses."""
