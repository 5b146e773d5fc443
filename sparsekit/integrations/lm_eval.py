"""The lm-evaluation-harness: any of its tasks, for a model with a pipeline.

    python -m sparsekit.integrations.lm_eval --model sparsekit --model_args pretrained=FOLDER,pipeline=SPEC --tasks TASK

The harness (0.4.13) finds models only in its own list, so this module registers "sparsekit" and then runs the harness's
command line, with all its options; the arguments of `--model sparsekit` are those of `--model hf`, and `pipeline`.
From Python: `register()`, then `lm_eval.simple_evaluate(model="sparsekit", model_args=...)`.

In generation tasks the prompt is the prefill that the pipeline computes, and decode is dense. In tasks that compare
likelihoods the prompt and the continuation are one prefill.
"""

from typing import Any

from ..extras import needs

needs("lm_eval", "lm-eval")

from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from ..layers import read_pipeline  # noqa: E402
from .transformers import sparsify  # noqa: E402

NAME = "sparsekit"


class SparseLM(HFLM):
    """The harness's Hugging Face model, with a pipeline."""

    batch_size_per_gpu: Any  # HFLM's

    def __init__(self, pretrained: Any, pipeline: str | None = None, **how: Any) -> None:
        """Load the model and give it the pipeline: a spec, or a schedule, which is a .json file or a folder with one.

        The other arguments are those of HFLM. Raises ValueError without a pipeline, for a spec that does not parse or
        a file that is no schedule.
        """
        if not isinstance(pipeline, str):
            raise ValueError(
                f"pipeline: got {pipeline!r}; allowed is a spec such as 'token_coverage(tau=0.02)', 'dense', or the "
                "path of a schedule: pass pipeline=... among the model's arguments"
            )
        chosen = read_pipeline(pipeline)
        super().__init__(pretrained, **how)
        self.sparsified = sparsify(self.model, chosen)

    def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        """Compute one sequence at a time: HFLM pads on the right without a mask, so a pipeline would read padding."""
        given, self.batch_size_per_gpu = self.batch_size_per_gpu, 1
        try:
            return super()._loglikelihood_tokens(*args, **kwargs)
        finally:
            self.batch_size_per_gpu = given


def register() -> None:
    """Register `model="sparsekit"` with the harness in this process."""
    register_model(NAME)(SparseLM)


def main() -> None:
    """Run the harness's command line, with "sparsekit" among its models."""
    from lm_eval.__main__ import cli_evaluate

    register()
    cli_evaluate()


if __name__ == "__main__":
    main()
