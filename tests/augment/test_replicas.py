"""The number of replicas does not matter: a sample comes out the same on any of them.

In a process of its own, as a device can only be split into logical ones before TensorFlow starts.
"""

import json
import subprocess
import sys

PROGRAM = """
import json
import numpy as np
import tensorflow as tf

tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)
from bloodcell import augment

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
many = np.arange(3000)
found = {}
# Every op of the registry eagerly; compiled, one that measures the image and one that has a style.
for how, ops in (("eager", list(augment.REGISTRY)), ("compiled", ["contrast", "zoom"])):
    # Each sample draws one op; of the ids that draw an op, one goes to each replica.
    policy = augment.parse(f"oneof({', '.join(ops)})")
    drawn = {name: np.flatnonzero(draws["on"]) for name, draws in policy.draw(many, epoch=5, seed=9).items()}
    ids = np.array([ids[replica] for replica in range(2) for ids in drawn.values()])
    images = np.random.default_rng(3).integers(0, 256, (len(ids), 16, 16, 3), dtype=np.uint8)

    dataset = tf.data.Dataset.from_tensor_slices((images, ids)).batch(len(ids))
    (batch,) = strategy.experimental_distribute_dataset(dataset)
    augmented = lambda images, ids: policy(images, ids, epoch=5, seed=9)
    step = lambda batch: strategy.run(augmented, batch)
    if how == "compiled":
        augmented = tf.function(augmented, jit_compile=True, autograph=False)
        step = tf.function(step, autograph=False)
    parts = strategy.experimental_local_results(step(batch))
    alone = policy(images, ids, epoch=5, seed=9).numpy()
    off = np.abs(np.concatenate([part.numpy() for part in parts]) - alone)
    found[how] = {
        "rows": [len(part) for part in parts], "drawn": len(drawn), "ops": len(ops),
        "changed": float(np.abs(alone - images).mean()), "most": float(off.max()), "share": float((off > 0).mean())}
print("RESULT" + json.dumps(found))
"""


def test_two_replicas_give_for_every_op_what_one_gives():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for how, found in json.loads(done.stdout.split("RESULT")[1]).items():
        assert found["drawn"] == found["ops"]
        assert found["rows"] == [found["ops"], found["ops"]]
        assert found["changed"] > 10
        # Each replica worked on its share, and one device worked on the whole batch eagerly.
        assert found["most"] <= (1 if how == "compiled" else 0)
        assert found["share"] <= 1e-3
