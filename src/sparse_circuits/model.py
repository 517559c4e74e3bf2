"""The transformer: embedding, blocks of attention and MLP, unembedding. The only forward pass there is."""

import math
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparse_circuits import kernels
from sparse_circuits.configs import ModelConfig
from sparse_circuits.decoding import Decoder, can_decode
from sparse_circuits.errors import TapError
from sparse_circuits.hooks import Hooked
from sparse_circuits.layers import AbsTopK, Linear, Norm, Read
from sparse_circuits.shared_prefixes import SharedPrefixes, spans_to
from sparse_circuits.taps import Tap
from sparse_circuits.tokenizer import Tokenizer


class Attention(nn.Module):
    """Moves information between positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.read = Read("attn.act_in", config)
        self.qkv = Linear(config.d_read, 3 * config.d_attn, bias=config.linear_bias)
        self.q = AbsTopK("attn.q", config.d_attn, config)
        self.k = AbsTopK("attn.k", config.d_attn, config)
        self.v = AbsTopK("attn.v", config.d_attn, config)
        self.sink = nn.Parameter(torch.zeros(config.n_head)) if config.attention_sink else None
        self.y = Tap()
        self.out = Linear(config.d_attn, config.d_model, bias=config.linear_bias)
        self.resid_delta = AbsTopK("attn.resid_delta", config.d_model, config)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        positions: Float[Tensor, "rows pos d_position"] | None,
        *,
        cache: "LayerCache | None",
        at: Int[Tensor, "batch query"] | None,
        prompts: SharedPrefixes | None,
    ) -> Float[Tensor, "batch query d_model"]:
        """Return what attention adds to the stream, at all positions or at some of each row."""
        qkv = self.qkv(self.read(x, positions), around=self.read.act_in.after.constants())
        q, k, v = self._thinned_out(qkv.unflatten(-1, (3, -1)), at)
        if cache is not None:
            k, v = cache.append(k, v)
        y = self.y(self._mix(q, k, v, at, prompts))
        if self.out.cut is None:
            return self.resid_delta(self.out(y))
        # A value that is cut off reaches the output as its mean, times the attention paid to positions.
        ablated = self._mix(q, k, self.out.cut.ablated.expand_as(v), at, prompts)
        return self.resid_delta(self.out(y, ablated))

    def _thinned_out(
        self, qkv: Float[Tensor, "batch pos 3 d_attn"], at: Int[Tensor, "batch query"] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pass queries, keys and values through their sites: in one call, where AbsTopK is all that happens there."""
        sites = (self.q, self.k, self.v)
        n_keep = self.q.n_keep
        if at is None and n_keep is not None and all(s.is_idle and s.n_keep == n_keep for s in sites):
            q, k, v = kernels.abs_topk(qkv, n_keep).unbind(-2)
            return q, k, v
        q, k, v = qkv.unbind(-2)
        return self.q(q if at is None else at_position(q, at)), self.k(k), self.v(v)

    def _mix(
        self, q: Tensor, k: Tensor, v: Tensor, at: Tensor | None, prompts: SharedPrefixes | None
    ) -> Float[Tensor, "batch query d_attn"]:
        rows, n_pos = q.shape[:2], k.shape[1]
        if prompts is None and at is None:
            q, k, v = (x.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for x in (q, k, v))
            mixed = kernels.sink_attention(q, k, v, self.sink)  # (batch, head, query, d_head)
            return mixed.transpose(1, 2).reshape(*rows, -1)
        q, k, v = (
            x.flatten(0, 1).unflatten(-1, (self.n_head, -1)) for x in (q, k, v)
        )  # (prompt or token, head, d_head)
        if at is not None:
            spans = spans_to(at, n_pos) if prompts is None else prompts.prompt_spans
            mixed = kernels.last_attention(q, k, v, self.sink, spans)
        else:
            mixed = kernels.shared_attention(q, k, v, self.sink, cast(SharedPrefixes, prompts).spans)
        return mixed.view(*rows, -1)


class MLP(nn.Module):
    """Computes at each position by itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = F.gelu if config.activation == "gelu" else F.relu
        self.read = Read("mlp.act_in", config)
        self.fc_in = Linear(config.d_read, config.d_mlp, bias=config.linear_bias)
        self.post_act = AbsTopK("mlp.post_act", config.d_mlp, config)
        self.fc_out = Linear(config.d_mlp, config.d_model, bias=config.linear_bias)
        self.resid_delta = AbsTopK("mlp.resid_delta", config.d_model, config)

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], positions: Float[Tensor, "rows pos d_position"] | None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return what the MLP adds to the stream."""
        read = self.read(x, positions)
        hidden = self.fc_in(read, around=self.read.act_in.after.constants())
        neuron = self.post_act(self.activation(hidden))
        return self.resid_delta(self.fc_out(neuron, around=self.post_act.after.constants()))


class Block(nn.Module):
    """Attention, then MLP; each adds to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.resid_in = Tap()
        self.attn = Attention(config)
        self.after_attn = AbsTopK("resid_mid", config.d_model, config)
        self.mlp = MLP(config)
        self.after_mlp = AbsTopK("resid_out", config.d_model, config)


class LayerCache:
    """Keys and values of one layer's earlier positions, for generation: without gradients."""

    def __init__(self) -> None:
        self.n_pos = 0
        self._stored: Tensor | None = None  # (2, batch, room, d_attn): keys, then values; room doubles when it is short

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add new positions and return all, each (batch, pos, d_attn)."""
        before, self.n_pos = self.n_pos, self.n_pos + k.shape[1]
        if self._stored is None or self.n_pos > self._stored.shape[2]:
            grown = k.new_empty(2, k.shape[0], max(self.n_pos, 2 * before), k.shape[2])
            if self._stored is not None:
                grown[:, :, :before] = self._stored[:, :, :before]
            self._stored = grown
        self._stored[0, :, before : self.n_pos], self._stored[1, :, before : self.n_pos] = k, v
        return self._stored[0, :, : self.n_pos], self._stored[1, :, : self.n_pos]

    def keys_and_values(self) -> Float[Tensor, "2 batch pos d_attn"]:
        """Return all that was added: keys, then values."""
        assert self._stored is not None
        return self._stored[:, :, : self.n_pos]


class Transformer(Hooked, nn.Module):
    """A weight-sparse (or dense) transformer that predicts the next token.

    Args:
        config: Its shape.
        tokenizer: What its tokens mean, where that is known; not part of the computation.

    `folder` is the run folder that it was opened from, if it was.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.folder: Path | None = None
        self.token_embedding = nn.Embedding(config.n_vocab, config.d_model)
        if config.positions != "none":
            self.position_embedding = nn.Embedding(config.n_ctx, config.d_position or config.d_model)
            if config.positions == "sinusoidal":
                waves = sinusoids(config.n_ctx, cast(int, config.d_position))
                self.position_embedding.weight = nn.Parameter(waves, requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.final_resid = Tap()
        self.final_norm = Norm(config.d_model, config)
        if not config.tied_unembedding:
            self.unembedding = Linear(config.d_model, config.n_vocab, bias=False)
        self.logit_bias: Tensor
        self.register_buffer("logit_bias", torch.zeros(config.n_vocab))
        if config.bigram != "none":
            table = torch.zeros(config.n_vocab, config.n_vocab)
            if config.bigram == "learned":
                self.bigram = nn.Parameter(table)
            else:
                self.register_buffer("bigram", table)

    def embed(
        self, tokens: Int[Tensor, "batch pos"], *, offset: int = 0, position: Int[Tensor, "batch pos"] | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """Return the stream before the first sublayer.

        Args:
            tokens: Token ids in [0, n_vocab).
            offset: Position of the first token; above 0 only behind a cache.
            position: Position of each token, where they don't follow one another.

        Raises:
            ValueError: The tokens reach beyond n_ctx.
        """
        stop = offset + tokens.shape[1] if position is None else int(position.max()) + 1
        if stop > self.config.n_ctx:
            raise ValueError(f"{stop} tokens exceed the model's context of {self.config.n_ctx}")
        x = self.token_embedding(tokens)
        if self.config.positions == "added":
            x = x + self.position_embedding.weight[slice(offset, stop) if position is None else position]
        return x

    def run(
        self,
        x: Float[Tensor, "batch pos d_model"],
        start: int = 0,
        stop: int | None = None,
        *,
        cache: list[LayerCache] | None = None,
        at: Int[Tensor, " batch"] | None = None,
        prompts: SharedPrefixes | None = None,
    ) -> Float[Tensor, "batch query d_model"]:
        """Run sublayers `start` to `stop` (attention of layer i is 2i, its MLP 2i + 1).

        Args:
            x: The residual stream at site `start`.
            start: First sublayer, in [0, 2 · n_layer].
            stop: One past the last; None for all.
            cache: One `LayerCache` a layer, whose positions come before those of `x`; they grow.
            at: Position to keep in each row: the last layer's queries and MLP run there alone. None keeps all.
            prompts: What `x` is the stream of, where rows are no single prompts; of each prompt the last position is
                kept, as with `at`.

        Returns:
            The stream at site `stop`; with `at`, one position a row once the last attention has run, with `prompts` one
            a prompt, (row, prompt, d_model).

        Raises:
            TapError: `at` is given, and an edit where it narrows looks at whole positions; or `prompts` are, and not
                all that is in force acts on each token by itself (see `can_share_prefixes`).
        """
        stop = 2 * self.config.n_layer if stop is None else stop
        if at is not None:
            self._refuse_whole_position_edits()
        if prompts is not None and not self.can_share_prefixes():
            raise TapError("an edit or a reader may tell prompts apart, whose tokens stand once; run them side by side")
        narrow = prompts.last if prompts is not None else None if at is None else at[:, None]
        positions = self._position_vectors(x, start, cache, prompts)
        for sublayer in range(start, stop):
            layer, is_mlp = divmod(sublayer, 2)
            block = cast(Block, self.blocks[layer])
            narrowed = narrow if layer == self.config.n_layer - 1 else None
            if not is_mlp:
                x = block.resid_in(x)
                delta = block.attn(x, positions, cache=cache[layer] if cache else None, at=narrowed, prompts=prompts)
                if narrowed is not None:
                    x = at_position(x, narrowed)
                x = block.after_attn(self._activate(x + delta))
            else:
                if narrowed is not None and positions is not None:
                    kept = narrowed if prompts is None else prompts.last_position
                    positions = self.position_embedding.weight[kept]  # (batch, query, d_position)
                x = block.after_mlp(self._activate(x + block.mlp(x, positions)))
        return x

    def unembed(
        self,
        x: Float[Tensor, "batch pos d_model"],
        tokens: Int[Tensor, "batch pos_all"],
        *,
        at: Int[Tensor, " batch"] | None = None,
        vocab: Int[Tensor, "batch answer"] | None = None,
    ) -> Float[Tensor, "batch pos logit"]:
        """Turn the final stream into logits.

        Args:
            x: The stream at the last site; one position a row where `at` is given.
            tokens: The tokens themselves; the current one looks up the bigram table.
            at: Position that `x` is at, in each row.
            vocab: Compute the logits of these tokens alone, chosen for each row.
        """
        if at is not None:
            tokens = tokens.gather(1, at[:, None])
            x = x if x.shape[1] == 1 else at_position(x, at[:, None])
        x = self.final_norm(self.final_resid(x))
        tied = self.token_embedding.weight if self.config.tied_unembedding else None
        has_bigram = self.config.bigram != "none"
        if vocab is None:
            bias = self.logit_bias
            logits = self.unembedding.product(x, bias) if tied is None else F.linear(x, tied, bias)
            if has_bigram:
                padding = None if self.config.bigram_trains_last_row else self.config.n_vocab - 1
                logits = logits + F.embedding(tokens, self.bigram, padding)
            return logits
        weight = self.unembedding.rows(vocab) if tied is None else tied[vocab]
        logits = torch.einsum("bpd,bad->bpa", x, weight) + self.logit_bias[vocab][:, None]
        if has_bigram:
            logits = logits + self.bigram[tokens[:, :, None], vocab[:, None]]
        return logits

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        at: Int[Tensor, " batch"] | None = None,
        vocab: Int[Tensor, "batch answer"] | None = None,
    ) -> Float[Tensor, "batch pos logit"]:
        """Return the logits after each position; with `at` after one position a row, with `vocab` of some tokens."""
        return self.unembed(self.run(self.embed(tokens), at=at), tokens, at=at, vocab=vocab)

    @torch.no_grad()
    def generate(
        self, tokens: Int[Tensor, "batch pos"], n_token: int, *, generator: torch.Generator | None = None
    ) -> Int[Tensor, "batch more"]:
        """Continue each row, with the likeliest token or, given a generator, with samples.

        Beyond n_ctx the context is cropped to its last n_ctx tokens and positions start again.

        Returns:
            Prompt and continuation, (batch, pos + n_token).

        Raises:
            ValueError: The prompt is empty, or `n_token` negative.
        """
        if tokens.shape[1] == 0 or n_token < 0:
            raise ValueError(
                f"{n_token} tokens after a prompt of {tokens.shape[1]}: expected 0 or more after 1 or more"
            )
        cache, decoder, n_cached = None, None, 0
        for n_left in range(n_token, 0, -1):
            context = tokens[:, -self.config.n_ctx :]
            if cache is None or tokens.shape[1] > self.config.n_ctx:
                cache, decoder, n_cached = [LayerCache() for _ in self.blocks], None, 0
            new = context[:, n_cached:]
            x = self.embed(new, offset=n_cached)
            x = self.run(x, cache=cache) if decoder is None else decoder.run(x)
            logits = self.unembed(x[:, -1:], new[:, -1:])[:, -1]
            n_cached = context.shape[1]
            n_more = min(n_left - 1, self.config.n_ctx - n_cached)
            if decoder is None and n_more > 0 and can_decode(self):
                decoder = Decoder(self, cache, n_more)
            if generator is None:
                chosen = logits.argmax(-1, keepdim=True)
            else:
                chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            tokens = torch.cat((tokens, chosen), 1)
        return tokens

    def taps(self) -> dict[str, Tap]:
        """Return every tap by location, in the order of the forward pass; what the names mean: docs/architecture.md."""
        taps: dict[str, Tap] = {}
        for i, block in enumerate(cast("list[Block]", self.blocks)):
            attn, mlp = block.attn, block.mlp
            taps[f"{i}.resid_in"] = block.resid_in
            _add_read(taps, f"{i}.attn", attn.read)
            for name, site in (("q", attn.q), ("k", attn.k), ("v", attn.v)):
                _add_site(taps, f"{i}.attn.{name}", site)
            taps[f"{i}.attn.y"] = attn.y
            _add_site(taps, f"{i}.attn.resid_delta", attn.resid_delta)
            taps[f"{i}.resid_mid"] = block.after_attn.after
            _add_read(taps, f"{i}.mlp", mlp.read)
            _add_site(taps, f"{i}.mlp.post_act", mlp.post_act)
            _add_site(taps, f"{i}.mlp.resid_delta", mlp.resid_delta)
            taps[f"{i}.resid_out"] = block.after_mlp.after
        taps["final_resid"] = self.final_resid
        taps["final_norm_scale"] = self.final_norm.scale
        return taps

    def linears(self) -> dict[str, Linear]:
        """Return the four linear maps of each layer by name, such as `0.attn.qkv`."""
        return {
            f"{i}.{name}": linear
            for i, block in enumerate(cast("list[Block]", self.blocks))
            for name, linear in (
                ("attn.qkv", block.attn.qkv),
                ("attn.out", block.attn.out),
                ("mlp.fc_in", block.mlp.fc_in),
                ("mlp.fc_out", block.mlp.fc_out),
            )
        }

    def can_share_prefixes(self) -> bool:
        """Say whether all that is in force acts on each token by itself, whatever its prompt and position.

        Then what is computed of tokens that several prompts begin with is the same for all; see `SharedPrefixes`.
        """
        taps = self.taps().values()
        is_read = any(tap.readers for tap in taps)
        return not is_read and all(getattr(e, "acts_on_each_token", False) for tap in taps for e in tap.edits)

    def require_whole(self) -> None:
        """Refuse a packed model, where whole weights are needed, such as to look for edges in.

        Raises:
            TapError: A linear map is packed.
        """
        for name, linear in self.linears().items():
            if linear.weight is None:
                raise TapError(f"{name} is packed, and its whole weights are needed; load the model with packed=False")

    def _activate(self, x: Tensor) -> Tensor:
        return x.relu() if self.config.residual_activation == "relu" else x

    def _position_vectors(
        self, x: Tensor, start: int, cache: list[LayerCache] | None, prompts: SharedPrefixes | None
    ) -> Tensor | None:
        if not self.config.has_concatenated_positions or start == 2 * self.config.n_layer:
            return None
        if prompts is not None:
            return self.position_embedding.weight[prompts.position]
        offset = cache[start // 2].n_pos if cache else 0
        if cache and start % 2 == 1:
            offset -= x.shape[1]  # the attention before this MLP has added them
        return self.position_embedding.weight[None, offset : offset + x.shape[1]]

    def _refuse_whole_position_edits(self) -> None:
        last = f"{self.config.n_layer - 1}."
        narrowed = [f"{last}attn.q", f"{last}attn.y", f"{last}attn.resid_delta", f"{last}resid_mid"]
        for name, tap in self.taps().items():
            if name.startswith((*narrowed, f"{last}mlp", f"{last}resid_out", "final")):
                for edit in tap.edits:
                    if not getattr(edit, "acts_at_each_position", False):
                        raise TapError(f"the edit of {name} may look at whole positions; run without `at`")


def at_position(
    x: Float[Tensor, "batch pos channel"], at: Int[Tensor, "batch query"]
) -> Float[Tensor, "batch query channel"]:
    """Take some positions of each row."""
    return x.gather(1, at[:, :, None].expand(-1, -1, x.shape[-1]))


def sinusoids(n_ctx: int, width: int) -> Float[Tensor, "n_ctx width"]:
    """Return fixed position waves: sines, then cosines, of periods spaced evenly in log from 4 to n_ctx.

    An odd width has a last column of zeros.

    Source: the release's model (sinusoidal_cat_pos_emb).
    """
    n_wave = width // 2
    period = torch.logspace(math.log10(4), math.log10(n_ctx), n_wave)
    angle = torch.arange(n_ctx)[:, None] * (2 * math.pi / period)
    return F.pad(torch.cat((angle.sin(), angle.cos()), -1), (0, width - 2 * n_wave))


def _add_read(taps: dict[str, Tap], prefix: str, read: Read) -> None:
    taps[f"{prefix}.norm_scale"] = read.norm.scale
    _add_site(taps, f"{prefix}.act_in", read.act_in)


def _add_site(taps: dict[str, Tap], name: str, site: AbsTopK) -> None:
    taps[f"{name}.before_topk"] = site.before
    taps[name] = site.after
