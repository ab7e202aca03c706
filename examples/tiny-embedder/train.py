"""Trains the tiny embedder from nothing: tokenizer, backbone (language model), embedder, and their measurements.

    python examples/tiny-embedder/train.py --data ../shared/data --work /tmp/tiny-embedder

Every stage writes what it made to ``--work`` and a stopped run goes on where it was. Two CPU cores need about two
hours; a GPU is used where there is one. With ``--start-from EMBEDDER`` that embedder is trained further, with a
learning rate that rises and falls once more, in batches of pairs that it finds alike.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from corpus import (
    END_OF_TEXT,
    PAD,
    VOCAB_SIZE,
    Corpus,
    language_model_batch,
    load_corpus,
    pad,
    pair_batch,
    pair_batches,
)
from embedding_init import ppmi_embeddings
from export import export
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM

DIMENSION, LAYERS, HEADS, FEED_FORWARD = 256, 4, 4, 688
TEMPERATURE = 0.05
SAVE_EVERY = 100


def build_model(corpus: Corpus, work: Path, pad_id: int, eos_id: int, seed: int) -> LlamaForCausalLM:
    """A random Llama with PPMI token embeddings, its residual branches turned down so that those speak first."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=DIMENSION,
            intermediate_size=FEED_FORWARD,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=pad_id,
            bos_token_id=eos_id,
            eos_token_id=eos_id,
        )
    )
    embeddings_file = work / "ppmi.safetensors"
    if not embeddings_file.exists():
        embeddings = ppmi_embeddings(corpus.positives.ids, VOCAB_SIZE, DIMENSION, seed=seed)
        save_file({"embeddings": embeddings}, embeddings_file)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(load_file(embeddings_file)["embeddings"])
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight *= 0.1
            layer.mlp.down_proj.weight *= 0.1
    return model


class Trainer:
    """One stage: a model, its optimiser with a warm-up and a linear decay, and a checkpoint to go on from."""

    def __init__(self, model: LlamaForCausalLM, work: Path, name: str, steps: int, learning_rate: float) -> None:
        self.model, self.steps, self.learning_rate = model, steps, learning_rate
        self.device = next(model.parameters()).device
        self.checkpoint = work / f"{name}.checkpoint.safetensors"
        self.log = work / f"{name}.log.jsonl"
        self.step = 0
        self.seconds = 0.0
        decayed = [p for p in model.parameters() if p.ndim > 1]
        other = [p for p in model.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": 0.01}, {"params": other, "weight_decay": 0.0}],
            lr=learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        )
        self.hidden_states = torch.compile(
            lambda ids: model.model(input_ids=ids, use_cache=False).last_hidden_state, dynamic=False
        )
        self.token_loss = torch.compile(
            lambda hidden, targets: F.cross_entropy(
                (hidden @ model.lm_head.weight.to(hidden.dtype).T).float(), targets
            ),
            dynamic=True,
        )
        if self.checkpoint.exists():
            self.restore()

    def restore(self) -> None:
        state = load_file(self.checkpoint)
        self.step, self.seconds = int(state["step"]), float(state["seconds"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(state[name])
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step), device=self.device),
                    "exp_avg": state[f"{name}.exp_avg"].to(self.device),
                    "exp_avg_sq": state[f"{name}.exp_avg_sq"].to(self.device),
                }

    def save(self) -> None:
        state = {"step": torch.tensor(self.step), "seconds": torch.tensor(self.seconds)}
        for name, parameter in self.model.named_parameters():
            state[name] = parameter.detach().cpu()
            moments = self.optimizer.state[parameter]
            state |= {f"{name}.{key}": moments[key].cpu() for key in ("exp_avg", "exp_avg_sq")}
        partial = self.checkpoint.with_suffix(".partial")
        save_file({k: v.contiguous() for k, v in state.items()}, partial)
        os.replace(partial, self.checkpoint)

    def run(self, losses: Iterator[dict[str, torch.Tensor]], name: str) -> None:
        """Takes one optimiser step for each dictionary of losses (``total`` is the one that is minimised)."""
        if self.step >= self.steps:
            return
        warmup = max(1, self.steps // 25)
        with tqdm(total=self.steps, initial=self.step, desc=name, mininterval=10) as bar:
            started = time.monotonic()
            for loss in losses:
                factor = min(1.0, (self.step + 1) / warmup) * max(0.02, 1 - self.step / self.steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.learning_rate * factor
                loss["total"].backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                self.step += 1
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                bar.update()
                if self.step % 10 == 0:
                    values = {k: round(float(v), 4) for k, v in loss.items()}
                    bar.set_postfix(values, refresh=False)
                    with self.log.open("a") as log:
                        log.write(json.dumps({"step": self.step, "seconds": round(self.seconds), **values}) + "\n")
                if self.step % SAVE_EVERY == 0 or self.step == self.steps:
                    self.save()
                if self.step == self.steps:
                    return


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def backbone_losses(trainer: Trainer, corpus: Corpus, batch_size: int, length: int, seed: int) -> Iterator[dict]:
    """Next-token loss on half of the positions of packed windows."""
    while True:
        ids = language_model_batch(corpus, trainer.step, batch_size, length, seed)
        batch = torch.from_numpy(ids.astype(np.int64)).to(trainer.device)
        with autocast(trainer.device):
            hidden = trainer.hidden_states(batch[:, :-1].contiguous()).reshape(-1, DIMENSION)
            chosen = slice(trainer.step % 2, None, 2)
            yield {"total": trainer.token_loss(hidden[chosen], batch[:, 1:].reshape(-1)[chosen])}


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Unit-length mean over the tokens of each text, in float32."""
    weights = mask.unsqueeze(-1).float()
    return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=1)


@torch.no_grad()
def topic_vectors(model: LlamaForCausalLM, corpus: Corpus, work: Path, pad_id: int) -> np.ndarray:
    """What the model makes of each pair's anchor, or of its positive's beginning, float16, shape ``(N, d)``."""
    file = work / "topics.npy"
    if not file.exists():
        device = next(model.parameters()).device
        texts = [
            a[:64] if len(a := corpus.anchors[i]) else corpus.positives[i][:64] for i in range(len(corpus.anchors))
        ]
        vectors = np.zeros((len(texts), DIMENSION), dtype=np.float16)
        order = np.argsort([len(text) for text in texts], kind="stable")
        for start in tqdm(range(0, len(order), 512), desc="topics"):
            rows = order[start : start + 512]
            ids, mask = (torch.from_numpy(a).to(device) for a in pad([texts[i] for i in rows], pad_id, multiple=1))
            with autocast(device):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            vectors[rows] = mean_pool(hidden, mask).cpu().numpy()
        np.save(file, vectors)
    return np.load(file)


def embedder_losses(
    trainer: Trainer,
    corpus: Corpus,
    vectors: np.ndarray | None,
    pad_id: int,
    batch_size: int,
    lm_weight: float,
    span_probability: float,
    seed: int,
) -> Iterator[dict]:
    """InfoNCE in both directions, and the next-token loss on a quarter of the positives' positions."""
    epoch_length = len(pair_batches(corpus, 0, batch_size, seed))  # topics change no batch's size
    batches: list[np.ndarray] = []
    epoch = -1
    while True:
        if trainer.step // epoch_length != epoch:
            epoch = trainer.step // epoch_length
            batches = pair_batches(corpus, epoch, batch_size, seed, vectors)
        rng = np.random.default_rng([seed, 2, trainer.step])
        members = batches[trainer.step % epoch_length]
        anchors, positives = pair_batch(corpus, members, rng, span_probability, max_length=192)
        anchor_ids, anchor_mask = (torch.from_numpy(a).to(trainer.device) for a in pad(anchors, pad_id))
        ids, mask = (torch.from_numpy(a).to(trainer.device) for a in pad(positives, pad_id))
        with autocast(trainer.device):
            anchor_hidden, hidden = trainer.hidden_states(anchor_ids), trainer.hidden_states(ids)
            predicted = mask[:, 1:].reshape(-1).nonzero().squeeze(1)[trainer.step % 4 :: 4]
            lm = trainer.token_loss(
                hidden[:, :-1].reshape(-1, DIMENSION)[predicted], ids[:, 1:].reshape(-1)[predicted]
            )
        scores = mean_pool(anchor_hidden, anchor_mask) @ mean_pool(hidden, mask).T / TEMPERATURE
        labels = torch.arange(len(members), device=trainer.device)
        contrastive = (F.cross_entropy(scores, labels) + F.cross_entropy(scores.T, labels)) / 2
        yield {"total": contrastive + lm_weight * lm, "contrastive": contrastive.detach(), "lm": lm.detach()}


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, corpus: Corpus, length: int = 256) -> float:
    """Mean next-token loss in nats over packed windows of the held-out texts."""
    ids = corpus.held_out.ids
    device = next(model.parameters()).device
    windows = torch.from_numpy(ids[: len(ids) // (length + 1) * (length + 1)].astype(np.int64)).view(-1, length + 1)
    total = 0.0
    for batch in windows.split(32):
        batch = batch.to(device)
        logits = model(input_ids=batch[:, :-1]).logits
        total += float(F.cross_entropy(logits.reshape(-1, VOCAB_SIZE).float(), batch[:, 1:].reshape(-1))) * len(batch)
    return total / len(windows)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds training/ and collections/")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens, checkpoints and logs")
    parser.add_argument("--output", type=Path, default=here, help="where backbone/ and embedder/ are written")
    parser.add_argument("--start-from", type=Path, help="embedder to train further, instead of a new backbone")
    parser.add_argument("--backbone-steps", type=int, default=2600)
    parser.add_argument("--embedder-steps", type=int, default=2300)
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="highest one of the embedder")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs a step of the embedder")
    parser.add_argument("--lm-weight", type=float, default=0.5, help="weight of the next-token loss in the embedder")
    parser.add_argument("--span-probability", type=float, default=0.3, help="share of anchors drawn from the positive")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    tokenizer, corpus = load_corpus(arguments.data, arguments.work)
    pad_id, eos_id = tokenizer.token_to_id(PAD), tokenizer.token_to_id(END_OF_TEXT)
    tqdm.write(f"{len(corpus.positives):,} texts, {len(corpus.positives.ids):,} tokens; device {device}")
    if arguments.start_from is None:
        model = build_model(corpus, arguments.work, pad_id, eos_id, arguments.seed).to(device)
        backbone = Trainer(model, arguments.work, "backbone", arguments.backbone_steps, learning_rate=2e-3)
        backbone.run(backbone_losses(backbone, corpus, batch_size=32, length=256, seed=arguments.seed), "backbone")
        loss = held_out_loss(model, corpus)
        minutes = backbone.seconds / 60
        tqdm.write(f"backbone: held-out loss {loss:.3f}, perplexity {math.exp(loss):.1f}, {minutes:.0f} min")
        export(model, tokenizer, arguments.output / "backbone")
        vectors = None
        before = {"backbone": {"held_out_loss": loss, "perplexity": math.exp(loss), "seconds": backbone.seconds}}
    else:
        model = LlamaForCausalLM.from_pretrained(arguments.start_from, dtype=torch.float32).to(device)
        vectors = topic_vectors(model, corpus, arguments.work, pad_id)
        before = {"before": json.loads((arguments.start_from.parent / "training.json").read_text())}

    embedder = Trainer(model, arguments.work, "embedder", arguments.embedder_steps, arguments.learning_rate)
    embedder.run(
        embedder_losses(
            embedder,
            corpus,
            vectors,
            pad_id,
            arguments.batch_size,
            arguments.lm_weight,
            arguments.span_probability,
            arguments.seed,
        ),
        "embedder",
    )
    embedder_loss = held_out_loss(model, corpus)
    tqdm.write(f"embedder: held-out loss {embedder_loss:.3f}, {embedder.seconds / 60:.0f} min")
    export(model, tokenizer, arguments.output / "embedder")
    record = {
        "arguments": {k: v for k, v in vars(arguments).items() if not isinstance(v, Path)},
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens": len(corpus.positives.ids),
        "texts": len(corpus.positives),
        "device": str(device),
        **before,
        "embedder": {"held_out_loss": embedder_loss, "seconds": embedder.seconds},
    }
    (arguments.output / "training.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
