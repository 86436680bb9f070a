"""Write a randomly initialised T5 in the Hugging Face layout, to train from scratch or to try the commands.

Only full tuning of such a model is useful: PEFT methods adapt what a model has already learned.

Run:  python scripts/make_checkpoint.py --out checkpoints/scratch --tokenizer path/to/t5_tokenizer --d-model 128
"""

import argparse
from pathlib import Path

from flax import nnx

from jpeft.model import t5_weights
from jpeft.model.t5 import T5
from jpeft.model.t5_config import T5Config
from jpeft.model.tokenizer import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="output directory")
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory with tokenizer.json or spiece.model")
    parser.add_argument("--d-model", type=int, default=128)
    parser.add_argument("--d-kv", type=int, default=32)
    parser.add_argument("--d-ff", type=int, default=256)
    parser.add_argument("--num-layers", type=int, default=2, help="number of blocks in each stack")
    parser.add_argument("--num-heads", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=32128)
    parser.add_argument(
        "--embedding-stddev",
        type=float,
        default=1.0,
        help="standard deviation of the embeddings; T5 has 1, smaller ones change faster relative to their size, which "
        "helps on little data",
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = T5Config(
        vocab_size=arguments.vocab_size,
        d_model=arguments.d_model,
        d_kv=arguments.d_kv,
        d_ff=arguments.d_ff,
        num_layers=arguments.num_layers,
        num_decoder_layers=arguments.num_layers,
        num_heads=arguments.num_heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    tokenizer = Tokenizer.load(arguments.tokenizer, vocab_size=config.vocab_size)
    model = T5(config, rngs=nnx.Rngs(arguments.seed))
    model.shared.embedding.set_value(model.shared.embedding[...] * arguments.embedding_stddev)
    t5_weights.save(model, arguments.out)
    tokenizer.save(arguments.out)
    print(f"{arguments.out}: a random T5, d_model {config.d_model}, {config.num_layers} + {config.num_layers} layers")


if __name__ == "__main__":
    main()
