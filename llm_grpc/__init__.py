"""llm-grpc: text generation over gRPC on ONNX Runtime."""

__version__ = "0.1.0"
