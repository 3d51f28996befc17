"""Every loss and layer once, small: what runs under compute-sanitizer."""

import torch

import fused_logistic as fl

DEVICE = torch.device("cuda")


def main() -> None:
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for rows, columns in ((1, 1), (3, 1031), (9, 1000)):
            z = torch.randn(rows, columns, device=DEVICE).to(dtype).requires_grad_()
            y = torch.rand(rows, columns, device=DEVICE).round()
            mask, row = torch.rand(columns, device=DEVICE) < 0.9, torch.rand(rows, 1, device=DEVICE)
            for loss in (
                fl.binary_cross_entropy_with_logits(z, y),
                fl.binary_cross_entropy_with_logits(z, y.bool(), weight=row, pos_weight=mask.float(), mask=mask),
                fl.binary_cross_entropy_with_logits(z, y.long(), label_smoothing=0.1, ignore_index=1, reduction="sum"),
                fl.sigmoid_focal_loss(z, y.to(dtype), gamma=2.0, reduction="mean"),
                fl.sigmoid_focal_loss(z, y.to(dtype), gamma=1.5, weight=row, reduction="sum"),
                fl.quality_focal_loss(z, y.to(dtype), reduction="mean"),
                fl.varifocal_loss(z, y.to(dtype), reduction="mean"),
                fl.asymmetric_loss_with_logits(z, y.to(dtype)),
            ):
                torch.autograd.grad(loss, z, torch.full_like(loss, 0.5))
        x = torch.randn(130, 34, device=DEVICE).to(dtype)
        for labels in (1, 70):
            head = fl.LinearBCEWithLogitsLoss(34, labels, device=DEVICE, dtype=dtype)
            head(x, torch.rand(130, labels, device=DEVICE).round()).backward()
    a, b = (torch.randn(70, 16, device=DEVICE, requires_grad=True) for _ in range(2))
    scale = torch.ones((), device=DEVICE, requires_grad=True)
    fl.sigmoid_contrastive_loss(a, b, scale, None).backward()
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
