"""The model card of an exported model: what it is, how sparse, how it is opened."""

from sparse_circuits.checkpoint import model_hash
from sparse_circuits.model import Transformer


def model_card(model: Transformer) -> str:
    """Return the text of a `README.md` for a model's folder on the Hub."""
    config = model.config
    weights = [p for name, p in model.named_parameters() if name != "bigram"]
    n_weight, n_nonzero = sum(p.numel() for p in weights), sum(int(p.count_nonzero()) for p in weights)
    thinned = (
        "none"
        if config.act_density is None
        else f"{config.act_density:g} of each vector at {', '.join(config.act_sites)}"
    )
    tokenizer = "tokenizer.json" if model.tokenizer is not None else "none is stored with the model"
    rows = {
        "layers, width, neurons": f"{config.n_layer}, {config.d_model}, {config.d_mlp}",
        "heads": f"{config.n_head} of width {config.d_head}" + (", with a sink each" if config.attention_sink else ""),
        "vocabulary, context": f"{config.n_vocab}, {config.n_ctx}",
        "nonzero weights": f"{n_nonzero:,} of {n_weight:,} ({n_nonzero / n_weight:.3%}), the bigram table left out",
        "bigram table": config.bigram,
        "activations kept": thinned,
        "tokenizer": tokenizer,
        "model hash": f"`{model_hash(model)}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- sparse-circuits
- weight-sparse
- mechanistic-interpretability
---

# A weight-sparse transformer

Almost every weight of this model is zero, so that the parts behind a behaviour can be cut out and read
(Gao et al. 2025, "Weight-sparse transformers have interpretable circuits", arXiv 2511.13653).

| what | value |
|---|---|
{table}

It runs no code of its own. With sparse-circuits installed:

```python
import sparse_circuits as sc

model = sc.load("this folder")
```

or, with its extra `hf`, through Hugging Face's classes:

```python
from sparse_circuits.interop import huggingface
from transformers import AutoModelForCausalLM, AutoTokenizer

huggingface.register()
model = AutoModelForCausalLM.from_pretrained("this folder")
tokenizer = AutoTokenizer.from_pretrained("this folder")
```

Text is continued to the right alone: batches are padded on the right, or grouped by length.
"""
