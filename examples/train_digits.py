"""A training loop in sight: what vitkit.Trainer does, written out."""

import vitkit
from vitkit.data import Loader, digits
from vitkit.optim import AdamW, clip_global_norm
from vitkit.optim.schedules import Cosine
from vitkit.train import Preprocess, evaluate


def main(epochs: int = 10) -> float:
    """Train for some epochs; return the accuracy on the test images."""
    data = digits()
    model = vitkit.ViT(
        "Ti/2", image_size=8, in_channels=1, num_classes=10, dim=64, depth=4, num_heads=4,
        activation="gelu_tanh", init="scratch",
    )  # fmt: skip
    print(model)
    loader = Loader(data.train, batch_size=64, shuffle=True)
    optimizer = AdamW(weight_decay=0.05).attach(model)
    schedule = Cosine(3e-3, total_steps=epochs * len(loader), warmup_steps=len(loader))
    preprocess = Preprocess.of(data.train)
    step = 0
    for epoch in range(epochs):
        for batch in loader.batches(epoch):
            ctx = vitkit.nn.Context(train=True, seed=0, step=step)
            logits = model.forward(preprocess(batch.images, model), ctx)
            labels = model.xp.asarray(batch.labels)
            loss, dlogits = vitkit.ops.softmax_cross_entropy(logits, labels, xp=model.xp)
            model.zero_grad()
            model.backward(dlogits, ctx)
            clip_global_norm(model.groups, 1.0, xp=model.xp)
            optimizer.step(schedule(step))
            step += 1
        found = evaluate(model, Loader(data.test, batch_size=256))
        print(f"epoch {epoch + 1:2}  loss {float(loss):.4f}  test accuracy {found.accuracy:.2%}")
    return found.accuracy


if __name__ == "__main__":
    main()
