"""Wait until the cluster of RAY_ADDRESS has so many GPUs: python wait_for_ray.py 16 [--resource GPU] [--seconds 600]"""

from __future__ import annotations

import argparse
import sys
import time

import ray


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--resource", default="GPU")
    parser.add_argument("--seconds", type=float, default=600.0)
    a = parser.parse_args()
    deadline, has = time.monotonic() + a.seconds, 0.0
    while time.monotonic() < deadline:
        try:
            if not ray.is_initialized():
                ray.init(address="auto", logging_level="error", log_to_driver=False)
            has = ray.cluster_resources().get(a.resource, 0.0)
        except (ConnectionError, OSError, RuntimeError):
            pass  # the head has not begun to listen
        if has >= a.count:
            return 0
        time.sleep(2.0)
    print(f"after {a.seconds:.0f} s the cluster has {has:g} of {a.count} {a.resource}s", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
