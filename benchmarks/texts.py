"""What the performance page says in words: its opening, and each section's title and text."""

from __future__ import annotations

from collections.abc import Mapping

INTRO = """# Performance

Every number here comes from `python -m benchmarks`; `{file}` holds them all, with the machine
and the command. Run it again and this page is written again; `--page-only` renders it from the
file.

**How to read.** Both sides of a ratio run in turn in one process, round by round, on one CPU
thread, so that a slow minute hits both. A ratio is the median over rounds with its quartiles in
brackets; above 1 means that axpo is faster, unless the section says otherwise. CPU time is the
process's own and the one to trust; wall time is beside it. Models are random and small (about 5
million parameters) or the lab's: what a ratio comes to at another size is a matter of operations,
and `operations` columns give it for an 8B model where that can be counted.
"""

TITLES: Mapping[str, str] = {
    "rollouts": "Rollouts with a tool",
    "vllm_rollouts": "Rollouts by vLLM",
    "training_step": "Training step",
    "peers": "Beside others that share prefixes",
    "update_profile": "Where an update's time goes",
    "long_trees": "Long trees in pieces",
    "whole_step": "A whole GRPO step",
    "extra_samples": "What AXPO's extra samples cost",
    "growth": "How time grows",
    "tools": "Tools beside the decode loop",
    "gradings": "Grading hostile answers",
    "cluster": "Ranks beside one process",
    "cluster_simulator": "How full many ranks are",
}
TEXTS: Mapping[str, str] = {
    "rollouts": """The same questions, sampled by axpo's engine, by TRL's GRPOTrainer, and by
`generate` under axpo's own agent with vision features kept. Every side starts with nothing cached.
Draws differ, so ratios are of seconds per sampled token. Another machine gave 2.97 on 2026-11-21 at
256 image tokens and two calls (6.91 against TRL). The code is not why: the one of 2026-11-22 takes
as long as today's on today's machine (medians of eight runs each, in turn, beside other work: 0.92
and 0.93 ms per token there, 0.64 and 0.63 at 64 image tokens and one call). Where the CPU seconds
went earlier at 256 image tokens
and two calls: decoding 42 % (attention 20, products 11), vision 25 %, prefill 21 % (products 10,
attention 6), agents, tools and the preparing of pictures 9 %, the engine's own work 4 % (sampling
0.7). `generate` with cached vision has the same vision and agents to pay for, a third of our time,
which bounds that ratio. Since then decoding reads what the rows of a question begin with once
(`axpo.engines.sharing`): 1.18 times as fast with 4 questions of 256 image tokens, 16 rollouts each
and no tool (3 rounds, all within 1 %); nothing certain at two calls (1.02 [0.99, 1.04]), where the
rows' own tokens are the larger part.""",
    "vllm_rollouts": """vLLM behind axpo's engine against axpo's in-process engine and
`generate`, on the same prompts with pictures, seeds and lengths, which nobody has seen before. The
lab's base model answers in few tokens, the other is random (text width 512, 8 layers). Ours is
vLLM: above 1 means that vLLM is faster. Its CPU seconds are the server's and this process's
together; by wall time it has a core more than the others.""",
    "training_step": """One question: 8 rollouts and 4 continuations of a frozen prefix, as AXPO
trains them. axpo's `Learner.update` on the packed tree against one padded row per trajectory with
its whole path and pictures (TRL, verl), and against padded rows whose vision tower runs once per
distinct picture (neither library does this). Padded rows run on transformers' own kernels. Loss
and gradient are the same on all sides, checked before timing (relative difference at most 1e-5,
float32 on a CPU). Pictures have 256, 512 and 1024 pixels a side:
64, 256 and 1024 tokens. Memory is what torch allocates at the step's peak beyond what was there
before, weights and optimizer state left out, axpo's as a share of the other's. Operations: how
many times more the other side needs by formula, for this model and with the sizes of
Qwen3-VL-8B.""",
    "peers": """One update of one question's tree, against other ways to train it. **PrefixGrouper**
computes a prefix once for its suffixes, one level deep; a tree with more levels is one group, in
which frozen tokens are repeated in each continuation, or a group for each prefix, a pass each. Both
ways are measured, and the faster one bears the plain name. Its attention is one SDPA call a suffix,
without padding. **Packed sequences** are whole paths one behind the other without padding, as many
a pass as fit into the tree's tokens. **Depth first** is AReaL-DTA's execution (arXiv 2602.00482),
written anew: one path's keys and values, one block's activations (at most 2,048 tokens), inner
nodes computed twice. **Padded rows** are trained as by TRL and verl, but with each picture encoded
once. Of more than 25,000 tokens these and packed sequences are left out, since operations say by
how much they lose. Every peer gets what does not belong to its idea: pictures go once through the
vision tower, with axpo's attention there, the LM head covers trained tokens alone, and passes are
laid out beforehand, while axpo's packing is timed. The text model is transformers' own. Only
padded rows compute the masked rest of a source. **axpo in pieces of a path** is the packed tree in
pieces of as many tokens as its longest path, which takes more time and less memory.

Groups have 8 rollouts. AXPO's have 4 continuations of a source, half of whose response is frozen,
or of each of 4 or 8 sources, of whose responses 0.8 is. `Shared` is the share of all paths' tokens
that a tree does not compute again. The text model is 256 wide with 2 layers and heads of 64. Memory
is axpo's peak as a share of the peer's, with gradients, without weights and optimizer state. The
floor is what any way has to compute: every token once, the pairs of query and key that are needed,
the head on trained tokens. `Operations / floor` are the peer's, for this model and for the sizes of
Qwen3-VL-8B; masked halves of rectangles are not counted. `Share of floor` is the time that the
floor's operations take at the speed of a 2048 x 2048 matrix product, as a share of the time that
was taken. Loss and gradient are the same on all sides, checked before timing (relative difference
at most 1e-5). On a shared machine two runs of one row differ by up to a tenth, sometimes by more
than their quartiles say: nothing between 0.9 and 1.1 is a difference.""",
    "update_profile": """The packed tree's update and PrefixGrouper's faster way, for some of the
trees above: processor seconds of the fastest of five rounds, divided as torch's profiler divides
its operators' own time in one more. Behind attention and products stands their speed: the time that
their part of the floor takes at the speed of a 2048 x 2048 matrix product, over the time that they
took. Python is what no operator took.
What pictures take stands in a row of its own; it is in both others, and not in the floor.

**What bounds the targets that are missed.** Both sides use one attention kernel and the same
products. With a prompt of 4,096 tokens these are 0.99 of our time in a GRPO group and 0.96 in an
AXPO group; were they all of it, the ratios would be 1.09 and 1.21. Attention there runs at 0.67 and
0.72 of a large product's speed, by the floor's count, in which no backward pass makes the scores
again, as the kernel's does. With crops of a large picture the pictures are half of our time and the
same on either side; without them the ratio is 1.13. With 8 sources and pictures the peer's
operations are 1.90 times the floor's. Memory is missed where PrefixGrouper trains a group for each
prefix: one at a time is held, of two or of nine. There the tree in pieces of a path needs less: 300
MiB against 490 with 8 sources, in 1.02 times its time in one pass.""",
    "long_trees": """Trees that take more memory than there is are trained in pieces
(`max_tokens_per_micro_batch`): consecutive parts of the depth-first layout, of which one at a time
has a graph. Here a piece has at most as many tokens as the tree (one pass), as its longest path, as
half of it or a quarter; `of the path's` compares with the memory of the longest path alone, in one
pass. Nodes stay whole where they fit. What later pieces see of a piece is computed once more
without a graph, and its keys and values stay, with their gradients, until the piece is trained:
that is what remains when gradient checkpointing lets go of most activations, and why smaller
pieces are then the better choice. By formula: every piece as it is cut, Qwen3-VL-8B in bfloat16,
attention in one call as on a GPU. Measured: trees a sixteenth as long on one layer of the 8B's
widths, float32, one run each, so seconds are as noisy as the machine. All without weights,
gradients of weights and optimizer.""",
    "whole_step": """Sampling with the zoom tool, grading and one update on the lab's questions,
against TRL's GRPOTrainer with the same model, prompts and limits. Ratios are per sampled token.""",
    "extra_samples": """AXPO's step against GRPO's, both in axpo, from the same weights with the
same questions and the same rollouts; here a ratio is AXPO's time over GRPO's: 1.10 means 10 %
more. Extra samples are continuations for each rollout, at most 0.25; how many a step takes depends
on how often tool use fails. Each one calls a tool and is shown a picture, which a rollout need not
be, so tokens grow by more than samples, and time grows as tokens do. An older target, 20 % more
time, was below that floor: at the SFT start AXPO samples 28 % more tokens and trains on 30 % more,
and its step took 32 % more. The price is therefore held against the tokens: `time / tokens` is the
ratio of all steps' CPU seconds over that of the tokens trained on, 1 where an extra token costs
what another does. Waste in resampling (prefixes computed again, small batches at the end) raises
it; costs that do not grow with tokens lower it, so it bounds the waste only together with them.
Another start, of
70 SFT steps, on a machine with a load of 8, gave 1.09 (5 rounds); resampling took 0.84 ms of CPU a
token there and sampling 0.36, for each continuation brings a call, a picture and its prefill.""",
    "growth": """One axis at a time around 256 image tokens, 128 response tokens, 8 rollouts and
no tool. Rollouts are of 4 questions; those with tool turns come from the model of the first
section (40 tokens per turn). A training step is one question's, with half as many continuations as
rollouts. Operations are the least that the result needs; their share is of the speed of a
2048 x 2048 matrix product measured in the same process.""",
    "tools": """First the decode loop: trajectories whose every turn calls the sandboxed `python`,
the zoom tool or `web_search` over a local corpus, with 200 ms awaited on top of each call (ours)
against the same tools without (theirs). All trajectories start at once, thinking is ragged, and
both sides sample the same tokens, which is checked; a ratio is seconds per sampled token, so 1.05
means 5 % fewer tokens per second. `idle` is the time of a run in which no request was in the
engine, all trajectories left being in tools; `alone` is the ratio of CPU and idle time together,
which is wall time without other programs on the machine.
`Rows per step` is how many tokens a round decodes: where a round costs the same whatever its rows,
as small batches on a GPU do, tokens per second fall as they fall. Even without its 200 ms, a call
takes several rounds of the decode loop, since coroutines run between rounds: `per call` is its mean
time. Then each tool's call through the toolbox as a multiple
of a call of an `async` function that does nothing; there CPU time is this process's, without the
sandbox's own.""",
    "gradings": """Ten thousand answers, 64 graded at once: texts of up to a million characters
that a scanner may take more than linear time for, formulas from easy to huge, and twenty sums,
products and integrals, every one another, that compute until they are stopped. Every answer gets a
verdict. `Block` is the longest time that the event loop stood still (a task that ticks every
millisecond measures it), `of it CPU` the loop's own processor time between two ticks, which other
programs on the machine do not add to. `Slowest` is the longest that the grading of an answer took
that is none of the twenty, waiting behind them included. Memory counts shared pages by share: what
this process grew by, and all that the math workers and their children have.""",
    "cluster": """The same update on several ranks, each a process with its shard of the
weights, that meet by gloo. They share two cores with everything else on the machine, so their wall
time says nothing and is not shown; neither do these figures say anything of a GPU or of a network.
What they can say is how the work is divided, and what dividing costs. A ratio is the processor
seconds of the rank that needs most, or of all ranks, over the one process's of the same round: with
N ranks 1/N would be perfect, and `fullest rank` over N is what the trees' sizes allow. Layers are
gathered for each pass, or held (once an update). Gloo copies a layer's weights, in float32, for
each pass of at most 1,024 tokens; passes of 16K tokens do it a sixteenth as often. Bytes are those
that a rank receives in gathering, and sends in reducing, for each token of the update; they are
counted where FSDP calls its collectives. The loss is that of all ranks' trees.""",
    "cluster_simulator": """What 2 to 64 ranks would do with an update's 64 trees, by the
code that real ranks use (`shared`, `micro_batches`, `passes_of`, `rounds`); a test compares it with
2 and 4 real ranks, to the byte. Nothing is timed. Trees are made: 8 rollouts of a question and 4
continuations of one of them, log-normal lengths (the deviation of a question's mean is 0.7, 0.6 and
0.4 for 12K, 60K and 100K tokens, of a path within its question 0.4, 0.4 and 0.3; no path above
16K), passes of 16,384 tokens, means of five draws. `Filled` is how much of the room of all training
passes holds tokens; passes without a gradient for the nodes above a piece come on top (`trunk`, as
a share of those), cheap ones of at most a node each. `Idle` is the share of passes that a rank
makes only because others have work. `Recorded` trees are 64 of successive steps of a run,
in passes of its own budget (`--trees RUN`; here GRPO of the recipe `smollm2`: small trees, two
thirds of which are not trained, for all their rewards are the same, and 2,048 tokens a pass). Held
layers have no rounds: `filled` is then the mean rank's tokens over the fullest's. Traffic is a
rank's in an update of Qwen3-VL-8B, received in gathering (bfloat16) and sent in reducing
(float32).""",
}
