"""Makes an embedder from SmolLM2-135M-Instruct: LoRA on its layers, InfoNCE on pairs, the one-word prompt, last token.

    python examples/smollm2-embedder/train.py --base models/smollm2-135m --data ../shared/data --work /tmp/smollm2

A stopped run goes on where it was. The learning rate is constant until the last steps, so that a run can be made
longer: with more ``--steps`` it goes on from the last checkpoint before the learning rate fell. Without checkpoints,
``--adapter`` goes on from an adapter, with a warm-up of its own. Every ``--save-adapter-every`` steps the adapter is
kept, for a table of quality by steps. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from st_keytokens.embedders.template_transformer import TemplateTransformer

TEMPLATE = ('This sentence : "', '" means in one word:"')
TEMPLATE_TOKENS = 24  # more than the template has
TEMPERATURE = 0.05
RANK, ALPHA = 16, 32
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Pairs of an epoch that come from sources of short glosses and tables, which are many and say little about retrieval.
LIMITS = {"wordnet-glosses": 6000, "factbook": 3000}
SAVE_EVERY = 20


@dataclass(frozen=True)
class Pairs:
    """``anchors[i]`` asks for ``positives[i]``; with the source of each."""

    anchors: list[str]
    positives: list[str]
    sources: np.ndarray


def is_held_out(text: str) -> bool:
    """One text in a hundred, chosen by its own hash, as for the tiny embedder."""
    return int(hashlib.sha1(text.encode()).hexdigest(), 16) % 100 == 0


def read_pairs(data: Path) -> Pairs:
    """Pairs without those held out, in an order that does not depend on the file's."""
    with lzma.open(data / "training" / "pairs.jsonl.xz", "rt", encoding="utf-8") as lines:
        records = {(r["anchor"], r["positive"], r["source"]) for r in map(json.loads, lines)}
    kept = sorted(record for record in records if not is_held_out(record[1]))
    return Pairs([r[0] for r in kept], [r[1] for r in kept], np.array([r[2] for r in kept]))


def topic_vectors(pairs: Pairs, embedder: Path, work: Path) -> np.ndarray:
    """What another embedder makes of each anchor, float16, shape ``(N, d)``: pairs alike share a batch."""
    file = work / "topics.npy"
    if not file.exists():
        model = SentenceTransformer(str(embedder))
        model.max_seq_length = 48
        vectors = model.encode(pairs.anchors, batch_size=256, normalize_embeddings=True, show_progress_bar=True)
        np.save(file, vectors.astype(np.float16))
    return np.load(file)


def alike(vectors: np.ndarray, members: np.ndarray, largest: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Groups of at most ``largest`` members with vectors alike: halves of halves, along two random members each."""
    if len(members) <= largest:
        return [rng.permutation(members)]
    one, other = vectors[rng.choice(members, 2, replace=False)].astype(np.float32)
    ordered = members[np.argsort(vectors[members].astype(np.float32) @ (one - other), kind="stable")]
    halves = ordered[: len(ordered) // 2], ordered[len(ordered) // 2 :]
    return [group for half in halves for group in alike(vectors, half, largest, rng)]


def batches(pairs: Pairs, vectors: np.ndarray, epoch: int, arguments: argparse.Namespace) -> list[np.ndarray]:
    """Every batch of an epoch: pairs of one source that are alike, so that negatives differ in more than topic."""
    rng, batch_size = np.random.default_rng([arguments.seed, 1, epoch]), arguments.batch_size
    found = []
    for source in np.unique(pairs.sources):
        members = rng.permutation(np.flatnonzero(pairs.sources == source))[: LIMITS.get(source)]
        ordered = np.concatenate(alike(vectors, members, arguments.alike_batches * batch_size, rng))
        found += [ordered[i : i + batch_size] for i in range(0, len(ordered) - batch_size + 1, batch_size)]
    return [found[i] for i in rng.permutation(len(found))]


def span(text: str, rng: np.random.Generator) -> str:
    """Some 6 to 24 words in a row."""
    words = re.findall(r"\S+", text)
    length = int(rng.integers(6, 25))
    start = int(rng.integers(0, max(1, len(words) - length)))
    return " ".join(words[start : start + length])


class Embedder:
    """The language model with an adapter, as an embedder of texts and as a language model."""

    def __init__(self, base: Path, device: torch.device, max_tokens: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.device = device
        # On a CPU in 16 bits, torch's fused attention takes three times as long as this one.
        arguments = {"dtype": torch.bfloat16} | ({"attn_implementation": "eager"} if device.type == "cpu" else {})
        self.transformer = TemplateTransformer(str(base), templates={"document": TEMPLATE}, model_kwargs=arguments)
        self.transformer.max_seq_length = max_tokens + TEMPLATE_TOKENS
        config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LAYERS)
        # The adapter computes in 16 bits, as its base does: half the memory; the optimiser keeps it in 32.
        self.model = get_peft_model(self.transformer.auto_model, config, autocast_adapter_dtype=False).to(device)
        self.lm_head = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).lm_head.to(device)
        self.lm_head.requires_grad_(False)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def embed(self, texts: list[str], parts: int) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Unit vectors, shape ``(len(texts), d)``, and token embeddings, ids and mask of each part.

        A batch runs in parts of texts of similar length, which saves padding.
        """
        order = np.argsort([len(text) for text in texts], kind="stable")
        rows, states = [], []
        for part in np.array_split(order, parts):
            features = self.transformer.preprocess([texts[i] for i in part])
            ids, mask = features["input_ids"].to(self.device), features["attention_mask"].to(self.device)
            hidden = self.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            rows.append(hidden[torch.arange(len(ids)), mask.sum(1) - 1].float())
            states.append((hidden, ids, mask))
        inverse = torch.from_numpy(np.argsort(order)).to(self.device)
        return F.normalize(torch.cat(rows), dim=1)[inverse], states

    def next_token_loss(self, states: list[tuple[Tensor, Tensor, Tensor]], step: int) -> Tensor:
        """Mean over an eighth of the positions."""
        losses = []
        for hidden, ids, mask in states:
            chosen = mask[:, 1:].reshape(-1).nonzero().squeeze(1)[step % 8 :: 8]
            logits = self.lm_head(hidden[:, :-1].flatten(0, 1)[chosen])
            losses.append(F.cross_entropy(logits.float(), ids[:, 1:].reshape(-1)[chosen]))
        return torch.stack(losses).mean()


class Trainer:
    """AdamW on the adapter, a warm-up, a constant learning rate, a linear fall, and checkpoints to go on from."""

    def __init__(self, embedder: Embedder, arguments: argparse.Namespace) -> None:
        self.embedder, self.arguments, self.work = embedder, arguments, arguments.work
        self.falls_from = arguments.steps - arguments.falling_steps
        self.step, self.seconds, self.tokens = 0, 0.0, 0
        self.before = None if arguments.adapter is None else self._go_on_from(arguments.adapter)
        self.warms_from = self.step
        self.weights = {name: p.detach().float() for name, p in embedder.parameters().items()}
        self.optimizer = torch.optim.AdamW(
            self.weights.values(), lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        steady, falling = (self.work / f"{name}.safetensors" for name in ("steady", "falling"))
        if falling.exists() and self._steps_of(falling) == arguments.steps:
            self._restore(falling)
        elif steady.exists():
            self._restore(steady)

    def _go_on_from(self, adapter: Path) -> dict[str, object]:
        """The weights and counts of an adapter that was kept; and how it was made."""
        set_peft_model_state_dict(self.embedder.model, load_file(adapter / "adapter_model.safetensors"))
        record = json.loads((adapter / "training.json").read_text())
        self.step, self.seconds, self.tokens = record["step"], record["seconds"], record["tokens_of_positives"]
        return record

    def _steps_of(self, file: Path) -> int:
        return int(load_file(file)["steps"])

    def _restore(self, file: Path) -> None:
        state = load_file(file)
        self.step, self.seconds, self.tokens = int(state["step"]), float(state["seconds"]), int(state["tokens"])
        for name, parameter in self.weights.items():
            parameter.copy_(state[name])
            moments = {k: state[f"{name}.{k}"].to(parameter.device) for k in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step)), **moments}
        self._hand_over()

    def _hand_over(self) -> None:
        """The optimiser's weights to the model."""
        with torch.no_grad():
            for name, parameter in self.embedder.parameters().items():
                parameter.copy_(self.weights[name])

    def save(self) -> None:
        numbers = {"step": self.step, "seconds": self.seconds, "tokens": self.tokens, "steps": self.arguments.steps}
        state = {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}
        for name, parameter in self.weights.items():
            state[name] = parameter.cpu().contiguous()
            for key in ("exp_avg", "exp_avg_sq"):
                state[f"{name}.{key}"] = self.optimizer.state[parameter][key].cpu().contiguous()
        target = self.work / ("falling" if self.step > self.falls_from else "steady")
        save_file(state, target.with_suffix(".partial"))
        os.replace(target.with_suffix(".partial"), target.with_suffix(".safetensors"))

    def factor(self) -> float:
        warm = min(1.0, (self.step - self.warms_from + 1) / self.arguments.warmup_steps)
        return warm * min(1.0, (self.arguments.steps - self.step) / max(1, self.arguments.falling_steps))

    def loss(self, pairs: Pairs, members: np.ndarray) -> dict[str, Tensor]:
        """InfoNCE in both directions; two pairs with the same anchor or positive are no negatives of each other."""
        rng = np.random.default_rng([self.arguments.seed, 2, self.step])
        positives = [pairs.positives[i] for i in members]
        anchors = [
            span(positive, rng)
            if len(positive) > 400 and rng.random() < self.arguments.span_probability
            else pairs.anchors[i]
            for i, positive in zip(members, positives, strict=True)
        ]
        asked, _ = self.embedder.embed(anchors, parts=1)
        found, states = self.embedder.embed(positives, parts=3)
        same = np.array([[a == b or p == q for b, q in zip(anchors, positives, strict=True)]
                         for a, p in zip(anchors, positives, strict=True)])  # fmt: skip
        hidden = torch.from_numpy(same & ~np.eye(len(same), dtype=bool)).to(asked.device)
        scores = (asked @ found.T / TEMPERATURE).masked_fill(hidden, -torch.inf)
        labels = torch.arange(len(members), device=asked.device)
        contrastive = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
        self.tokens += sum(int(mask.sum()) for _, _, mask in states)
        losses = {"total": contrastive, "contrastive": contrastive.detach()}
        if self.arguments.lm_weight:
            lm = self.embedder.next_token_loss(states, self.step)
            losses |= {"total": contrastive + self.arguments.lm_weight * lm, "lm": lm.detach()}
        return losses

    def run(self, pairs: Pairs, order: Iterator[np.ndarray]) -> None:
        parameters = self.embedder.parameters()
        with tqdm(total=self.arguments.steps, initial=self.step, mininterval=30) as bar:
            while self.step < self.arguments.steps:
                started = time.monotonic()
                for group in self.optimizer.param_groups:
                    group["lr"] = self.arguments.learning_rate * self.factor()
                loss = self.loss(pairs, next(order))
                loss["total"].backward()
                for name, parameter in parameters.items():
                    self.weights[name].grad = parameter.grad.float()
                    parameter.grad = None
                torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
                self.optimizer.step()
                self._hand_over()
                self.step += 1
                self.seconds += time.monotonic() - started
                bar.update()
                values = {name: round(float(value.detach()), 4) for name, value in loss.items()}
                with (self.work / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": self.step, "seconds": round(self.seconds), **values}) + "\n")
                if self.step % SAVE_EVERY == 0 or self.step in (self.arguments.steps, self.falls_from):
                    self.save()
                if self.step % self.arguments.save_adapter_every == 0 or self.step == self.arguments.steps:
                    self.export(self.work / f"adapter-{self.step}")

    def export(self, folder: Path) -> None:
        """The adapter in 16 bits, and what it took to make."""
        self.embedder.model.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        file = folder / "adapter_model.safetensors"
        save_file({k: v.to(torch.bfloat16).contiguous() for k, v in load_file(file).items()}, file)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
        config["target_modules"] = sorted(config["target_modules"])
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        settings = {k: v for k, v in vars(self.arguments).items() if not isinstance(v, Path)}
        record = {
            "arguments": settings,
            "step": self.step,
            "pairs": self.step * self.arguments.batch_size,
            "tokens_of_positives": self.tokens,
            "seconds": round(self.seconds),
            "device": str(self.embedder.device),
            "parameters": sum(p.numel() for p in self.embedder.parameters().values()),
        }
        if self.before is not None:
            record["before"] = self.before
        (folder / "training.json").write_text(json.dumps(record, indent=2) + "\n")


def order(pairs: Pairs, vectors: np.ndarray, step: int, arguments: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches from a step on, epoch after epoch."""
    epoch, first = 0, 0
    while True:
        found = batches(pairs, vectors, epoch, arguments)
        yield from found[max(0, step - first) :]
        first += len(found)
        epoch += 1


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds training/")
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, adapters and the log")
    parser.add_argument("--topics", type=Path, default=here.parent / "tiny-embedder" / "embedder",
                        help="embedder that tells which pairs are alike")  # fmt: skip
    parser.add_argument("--adapter", type=Path, help="adapter to go on from, with its training.json")
    parser.add_argument("--steps", type=int, default=980)
    parser.add_argument("--falling-steps", type=int, default=200, help="last steps, in which the learning rate falls")
    parser.add_argument("--warmup-steps", type=int, default=20)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--alike-batches", type=int, default=4, help="batches in a group of pairs that are alike; fewer are harder"
    )
    parser.add_argument("--max-tokens", type=int, default=64, help="tokens of a text at most")
    parser.add_argument("--lm-weight", type=float, default=0.0, help="weight of the next-token loss")
    parser.add_argument(
        "--span-probability", type=float, default=0.15, help="share of anchors drawn from the positive"
    )
    parser.add_argument("--save-adapter-every", type=int, default=100)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pairs = read_pairs(arguments.data)
    vectors = topic_vectors(pairs, arguments.topics, arguments.work)
    embedder = Embedder(arguments.base, device, arguments.max_tokens, arguments.seed)
    trainer = Trainer(embedder, arguments)
    tqdm.write(f"{len(pairs.anchors):,} pairs; {device}; from step {trainer.step} to {arguments.steps}")
    trainer.run(pairs, order(pairs, vectors, trainer.step, arguments))


if __name__ == "__main__":
    main()
