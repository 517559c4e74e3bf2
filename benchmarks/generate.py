"""Tokens a second of a model of 0.4 billion weights, 1 in 1,000 nonzero: 64 tokens after a prompt of 64.

    python benchmarks/generate.py [--peer CHECKOUT] [--folder runs/large] [--peer-tokens 2] [--rounds 3]

CHECKOUT is openai/circuit_sparsity, which has no cache: it runs the whole context for each token. It makes
`--peer-tokens` of the 64, the shortest and so the fastest of them. Needs 6 GB of memory with it.
"""

from pathlib import Path

import torch
from large_model import made, made_for_release
from measuring import in_turn, parser, report
from peers import RELEASE, release

import sparse_circuits as sc
from sparse_circuits.memory import keep_freed_memory


def main() -> None:
    """Measure ours and, with a checkout, the release's."""
    parse = parser(__doc__)
    parse.add_argument("--peer", type=RELEASE)
    parse.add_argument("--folder", type=Path, default=Path("runs/large"))
    parse.add_argument("--peer-tokens", type=int, default=2)
    arguments = parse.parse_args()
    keep_freed_memory()
    model = sc.load(made(arguments.folder), packed=True)
    prompt = torch.randint(2048, (1, 64), generator=torch.Generator().manual_seed(0))
    actions, n_token = {"ours": lambda: model.generate(prompt, 64)}, {"ours": 64}
    if arguments.peer:
        gpt = release(arguments.peer, "inference.gpt")
        gpt.read_file_cached = lambda path: Path(path).read_bytes()
        gpt.bf.join = lambda *parts: "/".join(parts)
        theirs = gpt.load_model(str(made_for_release(arguments.folder)), flash=True, cuda=False)
        with torch.no_grad():
            difference = float((theirs(prompt)[0] - model(prompt)).abs().max())
        assert difference < 1e-2, difference

        def generate() -> None:
            with torch.no_grad():
                theirs.generate(prompt, arguments.peer_tokens)

        actions["release"], n_token["release"] = generate, arguments.peer_tokens
    found = in_turn(actions, rounds=arguments.rounds, clock=arguments.clock)
    rates = {name: n_token[name] / seconds for name, seconds in found.items()}
    rows = [["", "tokens a second", "ratio"]]
    rows += [[name, f"{rate:.3g}", f"{rates['ours'] / rate:.0f}"] for name, rate in rates.items()]
    notes = [f"medians of {arguments.rounds}, {arguments.clock} time, {torch.get_num_threads()} threads"]
    if not arguments.peer:
        notes.append("not compared with the release: --peer names a checkout of openai/circuit_sparsity")
    report("generate", arguments, rows, rates, notes)


if __name__ == "__main__":
    main()
