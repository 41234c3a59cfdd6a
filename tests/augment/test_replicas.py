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

# Each sample draws one op; of the ids that draw an op, one goes to each replica.
policy = augment.parse(f"oneof({', '.join(augment.REGISTRY)})")
many = np.arange(3000)
drawn = {name: np.flatnonzero(draws["on"]) for name, draws in policy.draw(many, epoch=5, seed=9).items()}
ids = np.array([ids[replica] for replica in range(2) for ids in drawn.values()])
images = np.random.default_rng(3).integers(0, 256, (len(ids), 16, 16, 3), dtype=np.uint8)

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
dataset = tf.data.Dataset.from_tensor_slices((images, ids)).batch(len(ids))
(batch,) = strategy.experimental_distribute_dataset(dataset)
compiled = tf.function(lambda images, ids: policy(images, ids, epoch=5, seed=9), jit_compile=True)
parts = strategy.experimental_local_results(tf.function(lambda batch: strategy.run(compiled, batch))(batch))
alone = policy(images, ids, epoch=5, seed=9).numpy()
off = np.abs(np.concatenate([part.numpy() for part in parts]) - alone)
print("RESULT" + json.dumps({
    "rows": [len(part) for part in parts], "drawn": len(drawn), "ops": len(augment.REGISTRY),
    "changed": float(np.abs(alone - images).mean()), "most": float(off.max()), "share": float((off > 0).mean())}))
"""


def test_two_replicas_give_for_every_op_what_one_gives():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.split("RESULT")[1])
    assert found["drawn"] == found["ops"]
    assert found["rows"] == [found["ops"], found["ops"]]
    assert found["changed"] > 10
    # Each replica ran a compiled program on its share, and one device ran the whole batch eagerly.
    assert found["most"] <= 1
    assert found["share"] <= 1e-3
