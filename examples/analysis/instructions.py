"""What instructions change in key tokens, for the tiny embedder and, where it is installed, all-MiniLM-L6-v2.

    python examples/analysis/instructions.py

Neither was trained with instructions, which is the point: what changes here is what a prompt does to any mean-pooled
embedder, and a control that asks for nothing shows how much that is. Writes instructions.json, instructions.md and
instructions.svg into docs/results.
"""

from __future__ import annotations

import json

from pair import RESULTS, load_encoders, made_again, write_results

from st_keytokens.analysis.instructions import compare_instructions
from st_keytokens.analysis.plots import plot_instructions, save_figure

INSTRUCTIONS = {
    "sentiment": "Classify the sentiment of this review as positive or negative: ",
    "topic": "Identify the topic of this text: ",
    "control": "The table in the kitchen has four legs and a drawer: ",
}
TEXTS = (
    "The film is a wonderful surprise, and I laughed from beginning to end.",
    "A dull story, badly acted, and far too long.",
    "The hotel was clean and quiet, and the staff could not have been kinder.",
    "My order came late, cold and with half of it missing.",
    "The lecture on black holes was clear, and the students asked many questions.",
    "The new vaccine has caused fewer side effects than the doctors feared.",
    "The battery of this phone is empty before lunch.",
    "The orchestra played the symphony with great joy.",
)


def main() -> None:
    encoders = {name: e for name, e in load_encoders().items() if name.endswith("corrected")}
    found = {
        name: compare_instructions(encoder, TEXTS, INSTRUCTIONS, role="document") for name, encoder in encoders.items()
    }
    name = "tiny-embedder, corrected"
    save_figure(plot_instructions(found[name], title=name), RESULTS / "instructions.svg")
    path = write_results(
        "instructions",
        {"instructions": INSTRUCTIONS, "embedders": {name: result.to_dict() for name, result in found.items()}},
    )
    environment = json.loads(path.read_text(encoding="utf-8"))["env"]
    words = "\n".join(f"- *{name}*: {prompt.strip()}" for name, prompt in INSTRUCTIONS.items())
    blocks = [
        f"# Instructions, compared\n\n{len(TEXTS)} short texts under three prompts, beside none. Ten key tokens of "
        "each text, decoded by the LM head after removal of the first component and standardised over the first "
        "sentences of 1,000 arXiv abstracts. *kept* is the share of the key tokens without a prompt that stay, "
        "*cosine* that of the two dense vectors, *own words* the share of what enters that is the prompt's own "
        f"words. After a token stands in how many texts it enters or leaves.\n\n{words}\n\n![One text under the "
        "prompts](instructions.svg)\n\nNeither model was trained to follow instructions. Both pool over the "
        "prompt's tokens as well, so a prompt's own words and their neighbours enter whatever it asks for, and the "
        "control, which asks for nothing, changes at least as much. So this page shows the analysis at work, and what "
        "has to be set apart before a change is called following; it cannot show the paper's finding, for which an "
        "embedder trained with instructions is needed.\n"
    ]
    for name, result in found.items():
        blocks.append(f"## {name}\n\n{result.table()}")
        blocks += [f"{text}\n\n{result.text_table(i)}" for i, text in enumerate(TEXTS[:3])]
    blocks.append(made_again("python examples/analysis/instructions.py", environment))
    text = "\n".join(blocks)
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
