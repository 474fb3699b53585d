# %% [markdown]
# # Learn without Kafka
#
# A `Learner` takes samples from memory and learns them in order, as a worker does. Here the stream has the ten digits
# of scikit-learn, and classes arrive in pairs. Run the cells in an editor that knows `# %%`, or the file as a program:
#
#     python examples/learn_without_kafka.py

# %%
from importlib.util import find_spec

import numpy as np
from sklearn.datasets import load_digits

from stream_learner import Learner, Sample, load, set_up_torch

# %% The images, uint8 [N, H, W, C]. Every fifth image is kept out of training.
values, labels = load_digits(return_X_y=True)
images = (values.reshape(-1, 8, 8, 1) * 15).astype(np.uint8)
is_test = np.arange(len(images)) % 5 == 0

# %% The settings are the same as in a worker's file. `run.id` and `input.topics` are required, but nothing connects.
settings = load(
    None,
    [
        "run.id=digits",
        'input.topics=["unused"]',
        "model.name=mlp",
        "model.height=8",
        "model.width=8",
        "model.channels=1",
        "learning.augment=[]",
    ],
)
set_up_torch(settings)
learner = Learner(settings)


# %% Learn one pair of classes after the other, in batches of ten. Each image is seen once.
def accuracy(chosen: np.ndarray) -> float:
    predicted = learner.predict(list(images[chosen])).labels
    return float(np.mean([label == str(digit) for label, digit in zip(predicted, labels[chosen], strict=True)]))


measured = []
for pair in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)):
    arrived = np.flatnonzero(np.isin(labels, pair) & ~is_test)
    for batch in np.array_split(arrived, len(arrived) // 10):
        learner.learn([Sample(str(i), str(labels[i]), images[i]) for i in batch])
    seen = accuracy(is_test & (labels <= pair[1]))
    first = accuracy(is_test & (labels <= 1))
    measured.append((seen, first))
    print(f"after {pair[0]} and {pair[1]}: {seen:.1%} of the test images of all classes so far, {first:.1%} of 0 and 1")

# %% Draw the accuracies, if matplotlib is installed.
if find_spec("matplotlib"):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.plot(np.arange(1, 6) * 2, measured, marker="o", label=["all classes so far", "the first two classes"])
    axes.set(xlabel="classes", ylabel="test accuracy", ylim=(0, 1))
    axes.legend()
    figure.savefig("accuracy.png")
    print("drawn in accuracy.png")
