"""What the mean of the gradients adds to a step of TransFuser's, by the sizes of its buckets.

    python benchmarks/gradient_buckets.py --batch 22
    python benchmarks/gradient_buckets.py --batch 64 --ranks 4 --plans 1:16:0,copies:256:256:16

All plans are tried in one training on several GPUs (bucket_plans.py), so they share its compiled
step, its batch and its cards. The difference to a step without any exchange is what a plan costs.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import median

from report import print_report
from training_speed import Bench

PLANS = "1:16:0,32:32:16,100:100:16,1000:1000:16,1000:1000:0,copies:64:64:16,copies:256:256:16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=22, help="of one rank")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--plans", default=PLANS, help="[copies:]FIRST:USUAL:LAST in MiB, …")
    parser.add_argument("--samples", type=int, default=3328, help="32 logs; one is held out")
    parser.add_argument("--workers", type=int, default=8, help="reading threads of a rank")
    parser.add_argument("--compile-cache", help="kept from run to run")
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary one)")
    parser.add_argument("--prepared", action="store_true", help="--folder holds the data already")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(agent="transfuser_agent", cpu=False)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(args, args.folder or Path(temporary))
        bench.folder.mkdir(parents=True, exist_ok=True)
        bench.prepare()
        found = bench.bucket_plans(args.batch, args.ranks, args.plans)
    least = median(next(iter(found.values()))["ms"])  # the first is without any exchange
    rows = [
        (plan, one["buckets"], f"{median(one['ms']):.2f}", f"{median(one['ms']) - least:+.2f}")
        for plan, one in found.items()
    ]
    record = {
        "benchmark": "gradient_buckets",
        "arguments": vars(args) | {"folder": None},
        "results": found,
    }
    columns = ("MiB, first:usual:last", "buckets", "ms a step", "more than without")
    title = f"mean of the gradients, {args.ranks} ranks, batch {args.batch}"
    print_report(title, columns, rows, record, args.json)


if __name__ == "__main__":
    main()
