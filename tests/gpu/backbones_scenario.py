"""One forward and backward pass of a backbone of each family in each precision, on the GPU where there is one.

python backbones_scenario.py [FAMILY ...]
"""

import sys

import keras
import tensorflow as tf

from tl_dist.config import ModelConfig, registry
from tl_dist.models import classifier
from tl_dist.parallel import gpus

SMALLEST = {
    "tiny": "tiny", "vgg": "vgg16", "resnet": "resnet50", "mobilenet": "mobilenetv2", "efficientnet": "efficientnetb0",
    "efficientnetv2": "efficientnetv2b0", "densenet": "densenet121", "inception": "inceptionv3", "xception": "xception",
    "convnext": "convnexttiny",
}  # fmt: skip
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SIZE = 96


def main() -> None:
    device = (gpus.take_first(1) or ["CPU:0"])[0]
    for name in [SMALLEST[family] for family in sys.argv[1:] or SMALLEST]:
        for precision in PRECISIONS:
            keras.config.set_dtype_policy(precision)
            config = ModelConfig(backbone=name, weights="random", train_from="all", batch_norm="train")
            net = classifier.Classifier(registry.backbone(name), config, image_size=SIZE, num_classes=3, seed=0)
            images = tf.cast(tf.random.uniform([8, SIZE, SIZE, 3], maxval=256, dtype=tf.int32, seed=1), tf.uint8)
            trainable = list(net.trainable.values())
            with tf.GradientTape() as tape, net.batch_statistics(lambda value, name: value):
                loss = tf.reduce_sum(net.suffix(net.prefix(images), None))
            gradients = tape.gradient(loss, trainable)
            assert all(g is not None and device in g.device for g in gradients), (name, precision)
            assert all(bool(tf.reduce_all(tf.math.is_finite(g))) for g in gradients), (name, precision)
            print(name, precision, float(tf.linalg.global_norm(gradients)), flush=True)


if __name__ == "__main__":
    main()
