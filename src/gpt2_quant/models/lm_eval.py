"""lm-evaluation-harness with the hand-written schemes: its own command line, after the one import.

    python -m gpt2_quant.models.lm_eval --model hf --model_args pretrained=FOLDER --tasks TASK

Its `lm_eval` command has no way to import a package that registers a quantization method.
"""

from ..errors import UserError, run
from ..quantization import quantizer  # noqa: F401  registers the schemes with transformers


def main() -> None:
    """Raises UserError without lm-eval."""
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as fault:
        raise UserError(f"lm-eval cannot be imported ({fault}): pip install lm-eval[hf]") from fault
    cli_evaluate()


if __name__ == "__main__":
    run(main)
