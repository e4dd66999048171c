#!/usr/bin/env bash
# Trains on all GPUs of one machine; run it again after any interruption to resume.
#
#   DATA=/data/mine RUN=runs/mine export/training/multi_gpu.sh
#   CUDA_VISIBLE_DEVICES=0,1 DATA=/data/mine RUN=runs/mine export/training/multi_gpu.sh
set -euo pipefail
: "${DATA:?the folder of the data set}" "${RUN:?the run folder}"

exec ccfnet-tf fit --config folder_paper --data.root "$DATA" --out "$RUN" --resume \
  --train.strategy auto \
  --train.batch 32 --train.rate_for_batch 16 \
  --train.checkpoint_every "10 minutes"
