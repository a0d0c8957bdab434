"""Artefacts on the Hugging Face hub: upload a LAQ or a policy with a model card, and open it by its name.

Uploaded are the artefact (model.safetensors, config.json) and the card, written from config.json: data, settings,
figures, licence. What is downloaded (artefacts/download.py) is checked like any folder: kind, format, hash, every key
and shape.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lapa.artefacts.download import FILES, REPO, fetch, is_repo, local, reason
from lapa.artefacts.folder import load_artefact, read_config
from lapa.contracts import LapaError

__all__ = ["fetch", "is_repo", "local", "model_card", "push_to_hub"]

KINDS = {"laq": "latent action quantization model (LAQ)", "policy": "policy", "idm": "inverse dynamics model"}
STAGES = {"laq": ("window", "laq", "objectives", "quantize"), "idm": ("window", "idm", "fit_idm"),
          "policy": ("policy", "pretrain", "finetune", "head", "trainable", "clusters", "bins", "chunk"),
          "video_planner": ("policy", "planner", "pretrain_planner", "finetune_planner", "trainable")}  # fmt: skip
USE = {
    "laq": 'laq = lapa.LAQ.from_pretrained("{repo}")\ncodes = laq.encode(now, later)  # int64 [B, s]',
    "policy": 'policy = lapa.Policy.from_pretrained("{repo}")\n'
    'actions = policy.act({{"image": frame, "instruction": "put the carrot on the plate"}})',
    "idm": 'folder = lapa.artefacts.hub.local("{repo}")  # for lapa label --source',
}


def push_to_hub(folder: str | Path, repo: str, licence: str, private: bool = False) -> str:
    """Upload the artefact in `folder` to the hub as `repo`, user/name, in one commit; returns the address.

    `licence` is one of the hub's identifiers, such as apache-2.0: the choice is yours, but respect
    the licence of the videos. Raises LapaError for a folder without a whole artefact and for a hub that cannot be
    reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    if not REPO.fullmatch(repo):
        raise LapaError(f'"{repo}" is no name of a repository on the hub; write user/name.')
    config = _published(folder)
    files: dict[str, str | bytes] = {name: str(folder / name) for name in FILES}
    files["README.md"] = model_card(config, repo, licence).encode()
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(
            repo,
            [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()],
            commit_message=f"{config['kind']} {config['hash']} from lapa",
        )
    except Exception as error:  # as in fetch
        raise LapaError(
            f"{folder} could not be uploaded to {repo} ({reason(error)}). Check the network; `hf auth login` says "
            "who you are, with a token that may write."
        ) from None
    return str(commit.repo_url)


def _published(folder: Path) -> dict[str, Any]:
    """What config.json says of a whole artefact, with today's names. Raises LapaError for any other folder."""
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise LapaError(f"{folder} holds no finished artefact: {', '.join(missing)} is missing.")
    kind = read_config(folder).get("kind")
    if kind not in KINDS:
        raise LapaError(f'{folder} holds a "{kind}" artefact; the hub takes {", ".join(KINDS)}.')
    found = load_artefact(folder, str(kind))
    found.require_unchanged()
    return found.config


def model_card(config: dict[str, Any], repo: str, licence: str) -> str:
    """The README.md of an artefact on the hub, from its config.json (with today's names); nothing is claimed that is
    not in it."""
    kind, origin = str(config["kind"]), config.get("provenance", {})
    recipe, results = config.get("recipe", {}), config.get("results", {})
    settings = {name: recipe[name] for name in STAGES.get(config.get("policy", ""), STAGES[kind]) if name in recipe}
    data = [f"* `{name}` (fingerprint `{fingerprint}`)" for name, fingerprint in origin.get("data", {}).items()]
    parents = [f"* made from `{path}`, hash `{key}`" for path, key in origin.get("parents", {}).items()]
    figures = [f"| {name} | {_shown(value)} |" for name, value in results.items()]
    versions = ", ".join(f"{name} {version}" for name, version in origin.get("versions", {}).items())
    method = f", method `{config['method']}`" if "method" in config else ""
    return "\n".join([
        "---", f"license: {licence}", "library_name: lapa", "tags:", "- robotics", "- latent-action", f"- {kind}",
        "---", "", f"# {repo.partition('/')[2]}", "",
        f"A {KINDS[kind]}{method} of [LAPA](https://arxiv.org/abs/2410.11758), Latent Action Pretraining from Videos.",
        f"Weights: `{config['hash']}` (sha256, first 16 digits). Licence of the weights: {licence}.", "",
        "```python", "import lapa", "", USE[kind].format(repo=repo), "```", "",
        "## Data", "", *(data or ["Not recorded."]), *parents, "",
        "## Figures", "", *(["| figure | value |", "|---|---|", *figures] if figures else ["None recorded."]), "",
        "## Settings", "", f"Seed {origin.get('seed', 'not recorded')}; {versions or 'versions not recorded'}.", "",
        "```json", json.dumps(settings, indent=1), "```", "",
    ])  # fmt: skip


def _shown(value: Any) -> str:
    values = value if isinstance(value, list) else [value]
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
