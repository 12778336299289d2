"""The one table of limits on what tl_dist accepts from files, names and peers that it does not trust.

Each is far above what honest input needs, and no input brings the machine down. In bytes unless named otherwise.
"""

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

# Text written by users
CONFIG = 1_000_000
CONFIG_ALIASES = 50
CONFIG_DEPTH = 20  # levels of nesting
CONFIG_VALUES = 10_000  # after aliases are expanded: fifty of them, nested, would make 2**50

# Images
ENCODED_IMAGE = 512 * MIB
IMAGE_PIXELS = 2 * 89_478_485  # where Pillow refuses a decompression bomb: 512 MiB of RGB
IMAGE_SIDE = 8_192  # of the square input of a network
BATCH_PIXELS = 1 << 33  # of a step over all workers: 96 GiB of float32; 65,536 images of 224 x 224 take 3.3e9
IMAGE_HEADER = 16 * MIB  # EXIF data, colour profiles and thumbnails in front of the frame's size
IMAGE_SEGMENTS = 10_000  # of a JPEG in front of its pixels; chunks of a PNG, blocks of a GIF
JPEG_EXIF = 128 * KIB  # one segment has 64; Pillow copies all earlier ones for each that follows
JPEG_SCANS = 100  # editors write 10, by scripts of optimizers up to 64
JPEG_SCANNED_PIXELS = 9 * 10**9  # pixels times scans, some of which count more: 3 seconds
PNG_INFLATED = 128 * MIB  # beyond what the pixels need: 1 second
TIFF_PIECES = 100_000  # strips, of which each row may be one, or tiles

# Data sets
CLASSES = 100_000  # a label beyond it is damage, not a class
SHARDS = 100_000  # files of one split
TABLE_LINE = 1 * MIB  # a line of a CSV file
FOLDER_DEPTH = 64  # nested directories of images
FOLDERS = 5_000_000  # of images, in one data set
IMAGES = 50_000_000  # in folders; ImageNet-21k has 14 million
RECORD = 256 * MIB  # one example of a TFRecord file
DATASET_METADATA = 32 * MIB  # a JSON or text file that describes a data set or names its classes
PACKED_INDEX = 256 * MIB  # of one shard
ARCHIVE = 1 * GIB  # downloaded; CIFAR's are 170 MB
ARCHIVE_UNPACKED = 4 * GIB
ARCHIVE_MEMBERS = 100_000
CIFAR_FILE = 256 * MIB  # CIFAR-100's training examples are 155 MB
SPLIT_MANIFEST = 1 * GIB
QUARANTINE = 256 * MIB
LISTING = 1 * GIB  # all folders of a data set; ImageNet's take 45 MB
LISTED_FILES = 1 * GIB  # file names on standard input

# Networks
WEIGHTS = 8 * GIB
PACKAGE = 8 * GIB
PACKAGE_MEMBERS = 500_000
HDF5_OBJECTS = 50_000
HDF5_DEPTH = 16
HDF5_NAMES = 20_000
HDF5_CPU_S = 30  # 48,000 arrays take 4, and one of 600 MB less than one
CHECKPOINT_GRAPH = 64 * MIB  # the object graph of a TensorFlow checkpoint
TORCH_PICKLE = 16 * MIB  # names and shapes of torch's tensors, 200 bytes each

# Run directories
RUN_ENTRIES = 1_000_000  # files: the largest job has a log and a heartbeat for each worker
RUN_JSON = 16 * MIB
METRICS_LINE = 16 * MIB  # the whole evaluation of 1,000 classes would be 3 MB
EVALUATION = 64 * MIB
REPORT = 256 * MIB  # a page with its pictures
LOCK = 8 * KIB
CHECKPOINT_META = 16 * MIB
CHECKPOINT_MANIFEST = 64 * KIB
CHECKPOINT_HEADER = 16 * MIB
FEATURE_MANIFEST = 16 * MIB

# Requests to a server
SERVED_BODY = 32 * MIB
SERVED_IMAGES = 256  # of one request
SERVED_WAITING = 512  # images of all requests
SERVED_CONNECTIONS = 64  # of one peer (a user of this host, or an address); four times as many in all
SERVED_REQUESTS = 64  # that have arrived as a whole and wait for their answer
SERVED_SMALL = 1 * MIB  # a body that is accepted however much is in flight
SERVED_IN_FLIGHT = 128 * MIB  # bodies of all requests
SERVED_PIXELS = 64_000_000  # of one image: cameras have 61 million; 1 GiB while it is resized

# Peers
HOSTS = 65_536  # of a Slurm job
WORKERS = 1_000_000  # of a job
RENDEZVOUS_VALUE = 64 * KIB  # a worker's addresses for 256 of its peers, which take half of it
