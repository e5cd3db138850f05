#!/bin/sh
# Trains the default model's reader adapters again: make adapters DATA=folder OUT=folder.
# Takes about three hours of one core. Finished steps are skipped, and an interrupted one is resumed.
set -eu
data=$1 out=$2
squad=$data/train_wiki_squad.jsonl.gz hops=$data/train_multihop.jsonl.gz
export MEMBANK_CODEC=auto
mkdir -p "$out"

train() { # folder, arguments of membank train
    folder=$out/$1
    shift
    for file in "$folder"/memory.json "$folder"/rag.json; do
        [ ! -e "$file" ] || return 0
    done
    resume=
    [ ! -e "$folder/checkpoint.safetensors" ] || resume=--resume
    membank train "$@" --out "$folder" --patience 99 $resume
}

# Both readers start from the same two steps: first on memories, then on text.
train 1 "$squad" --steps 200 --rate 7e-4 --every 50 --valid 96
train 2 "$squad" --steps 80 --rate 5e-4 --every 40 --valid 96 --seed 1 --mode rag --from "$out/1/memory.safetensors"
# Then each is trained in its own mode, with equal compute.
train 3 "$squad" --steps 320 --rate 5e-4 --every 40 --valid 96 --seed 2 --from "$out/2/rag.safetensors"
train 4 "$squad" --steps 88 --rate 5e-4 --every 44 --valid 96 --seed 2 --mode rag --from "$out/2/rag.safetensors"
# Finally, questions over several passages are added, each one twice.
train 5 "$squad" "$hops" "$hops" --steps 720 --rate 5e-4 --every 60 --valid 128 --seed 5 --from "$out/3/memory.safetensors"
train 6 "$squad" "$hops" "$hops" --steps 220 --rate 5e-4 --every 44 --valid 128 --seed 5 --mode rag --from "$out/4/rag.safetensors"
cp "$out/5/memory.safetensors" "$out/6/rag.safetensors" "$out"
echo "$out: MEMBANK_ADAPTER=$out reads with them"
