"""How much of a sentence-embedding model is left: the mean cosine between its embeddings and the original's."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer, logging

SENTENCES = (
    "The ferry leaves the harbour at six and returns after dark.",
    "Rain fell on the vineyards for the third week in a row.",
    "She repaired the old radio with a paper clip and patience.",
    "The committee postponed its decision until the budget is known.",
    "A small bakery on the corner sells out of rye bread by nine.",
    "How do I reset the password of my router?",
    "The patient should take one tablet with water every morning.",
    "Glaciers in the valley have lost a third of their ice since 1980.",
    "He scored the winning goal in the last minute of extra time.",
    "The library is closed on public holidays.",
    "Please keep your receipt; refunds are given within thirty days.",
    "Two cats were asleep on the warm bonnet of the car.",
    "The court ruled that the contract was void from the start.",
    "Add the flour slowly and stir until the dough is smooth.",
    "Interest rates were left unchanged for the fifth month.",
    "The telescope recorded a faint signal from a distant galaxy.",
    "My flight was cancelled and the hotel would not refund me.",
    "Children under five travel free of charge.",
    "The river is home to otters, kingfishers and wild trout.",
    "An index makes the query faster but every insert slower.",
    "They painted the kitchen yellow and regretted it at once.",
    "The museum's new wing shows ceramics of the Ming dynasty.",
    "Vaccination reduces the risk of severe illness.",
    "Is there a train to the coast on Sunday evening?",
    "The violinist tuned her instrument behind the curtain.",
    "Solar panels on the roof cover half of the school's demand.",
    "The suspect was seen leaving the building shortly before noon.",
    "A function that calls itself is said to be recursive.",
    "We walked along the dunes until the lighthouse came into view.",
    "The bread was stale, the soup was cold, the bill was long.",
)

logging.set_verbosity_error()
logging.disable_progress_bar()


@torch.no_grad()
def embeddings(folder: Path, tokenizer: Path) -> torch.Tensor:
    """Embeddings of SENTENCES by the model in `folder`: mean over unpadded tokens, unit length, float32 [30, 384]."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = AutoTokenizer.from_pretrained(tokenizer)(list(SENTENCES), padding=True, truncation=True, max_length=128, return_tensors="pt")
    hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def cosine(folder: Path, original: Path) -> float:
    """Mean cosine between the embeddings of two models, in [-1, 1]."""
    return (embeddings(folder, original) * embeddings(original, original)).sum(1).mean().item()
