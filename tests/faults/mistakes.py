"""What the criteria of the plug-in `misbehaving.py` do wrong. `MISTAKES`: name -> what the error of its rows says."""

MISTAKES = {
    "raises": "ValueError: [/tmp/x] [red]not markup",
    "exits": "SystemExit: 3",
    "interrupts": "KeyboardInterrupt",
    "dies": "died twice on this job (exit code 5)",
    "killed": "died twice on this job (SIGKILL; perhaps out of memory)",
    "exhausts": "MemoryError",
    "not_finite": "not finite",
    "wrong_shape": "scores of shape (100, 30), not (99, 30)",
    "wrong_names": "missing or extra: 1.weight",
    "not_scores": "must return methods.Scores",
    "trains": "changed '1.weight'",
    "leaves_hook": "left 1 hooks",
    "replaces_forward": "changed the modules",
    "draws_torch": "torch's global random state",
    "draws_numpy": "numpy's global random state",
    "draws_python": "random state of the module random",
    "dtype": "the default dtype",
    "threads": "the number of threads",
    "patches_the_harness": "the function 'logits_of'",
    "patches": "the function 'topk'",
}
PRINTED = "noise" * 400_000  # two megabytes
