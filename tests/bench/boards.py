"""Made-up rows for leaderboards whose numbers are known."""

import json

from bench.spec.row import Row

S = (0.5, 0.9, 0.95, 0.99)


def rows(
    method: str,
    curve: tuple[float, ...],
    *,
    stage: str = "after",
    finetune: int = 0,
    training: str = "map",
    ablation: str = "none",
    epochs: int = 10,
    seeds: dict[int, float] | None = None,
    dataset: str = "d",
    tuning: str = "default",
    **more: object,
) -> list[Row]:
    """A row for each sparsity and seed; `seeds` are what each adds to the accuracy: two, the second a point better."""
    return [
        Row(
            suite="s",
            dataset=dataset,
            architecture="a",
            granularity="weight",
            match="weights",
            method=method,
            criterion=method,
            training=training,
            stage=stage,
            tuning=tuning,
            ablation=ablation,
            sparsity=s,
            seed=seed,
            epochs=epochs,
            finetune_epochs=finetune,
            hyperparameters=json.dumps({"training": {}}),
            **(
                {
                    "status": "ok",
                    "accuracy": a + gain,
                    "nll": 1 - a,
                    "ece": 0.1,
                    "dense_accuracy": 0.9,
                    "score_seconds": 2.0,
                    "train_seconds": 10.0,
                }
                | more
            ),
        )
        for seed, gain in (seeds or {0: 0.0, 1: 0.01}).items()
        for s, a in zip(S, curve, strict=True)
    ]


def dense(accuracy: float = 0.9, finetune: int = 0, method: str = "dense") -> list[Row]:
    made = rows(method, (accuracy,) * 4, stage="", finetune=finetune)
    return [r for r in made if r.sparsity == 0.5]
