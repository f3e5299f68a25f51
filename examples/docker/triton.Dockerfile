# Serve artefacts with Triton Inference Server. Beside this file:
#     joulec package build/cuda -o models --name digits
#     docker build -f triton.Dockerfile -t digits .
#     docker run --gpus all -p 8000:8000 digits
# Take the release whose ONNX Runtime and CUDA fit your driver.
ARG RELEASE=25.10
FROM nvcr.io/nvidia/tritonserver:${RELEASE}-py3
COPY models /models
# Engines of TensorRT artefacts are built at the first start. Keep them: joulec package ... --engines /engines, and
# docker run -v engines:/engines ...
HEALTHCHECK CMD curl --fail --silent localhost:8000/v2/health/ready
ENTRYPOINT ["tritonserver", "--model-repository=/models", "--strict-readiness=true"]
