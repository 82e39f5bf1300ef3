# `docker run` scans the built-in model, or whatever model is named:
#
#     docker build -t studfinder .
#     docker run --rm -v "$PWD/runs:/studfinder/runs" studfinder
#
# Not built where it was written: no container engine was at hand.
FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends make git && rm -rf /var/lib/apt/lists/*
WORKDIR /studfinder
# torch alone first: the index's own wheel brings CUDA along.
COPY constraints.txt .
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir -c constraints.txt torch --index-url https://download.pytorch.org/whl/cpu
COPY . .
RUN make setup
CMD ["make", "scan"]
