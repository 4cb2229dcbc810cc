"""What a profiler looks at: three calls of ``attend`` of one arm over one long context, and nothing else after it.

``ncu --kernel-name regex:decode python -m benchmarks.gpu.profile_target --arm palu_16 --rows FILE``.
"""

import torch

from benchmarks.gpu.setting import CODED, append, arm_of, parser_of, setting_of

CONTEXT, CALLS = 65536, 3


def main() -> None:
    parser = parser_of("profile_target", __doc__ or "")
    parser.add_argument("--arm", choices=CODED, required=True)
    options = parser.parse_args()
    setting = setting_of(options)
    torch.manual_seed(0)
    with torch.inference_mode():
        case = setting.case(1, None if setting.rehearsal else CONTEXT)
        arm = arm_of(options.arm, case)
        query = case.random(1, case.layer.shape.num_heads, case.layer.shape.head_dim)
        for _ in range(CALLS):
            out = arm.attend(query)
        if not out.isfinite().all():
            raise SystemExit(f"{options.arm} gave numbers that are not finite")
    about = {"experiment": "profile_target", "arm": options.arm, "context": case.batch.context, "calls": CALLS}
    append(options.rows, about | {"rehearsal": setting.rehearsal})


if __name__ == "__main__":
    main()
