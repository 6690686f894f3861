#!/usr/bin/env bash
# The image on this node's own disk, below CONVOY_UNPACK: prints the folder it is unpacked in, after
# unpacking it where no job did so before. What is decided, `convoy unpacked` in the image decides.
set -euo pipefail
inside() {  # IMAGE ARGUMENT…: convoy in the image, with nothing of the host bound over its files
    apptainer --quiet exec --cleanenv --no-eval --no-home --no-mount=cwd,bind-paths --pwd=/ \
        --mount="type=bind,\"source=$CONVOY_UNPACK\",destination=/mnt" "$1" \
        /opt/convoy/entrypoint/run.sh "${@:2}"
}

folder=''
conclude() {
    if (($? == 0)); then return; fi
    if [[ $folder ]]; then rm -rf "$folder.partial"; fi
    echo "launch: the image stays mounted on $(hostname)" >&2
}
trap conclude EXIT

mkdir -p "$CONVOY_UNPACK"
name=$(inside "$CONVOY_IMAGE" unpacked /mnt --shown="$CONVOY_UNPACK")
folder=$CONVOY_UNPACK/$name
if [[ ! -d $folder ]]; then
    exec 9>> "$folder.lock"
    flock 9  # another job on this node may be at it
fi
if [[ ! -d $folder ]]; then
    inside "$CONVOY_IMAGE" unpacked /mnt --shown="$CONVOY_UNPACK" --room > /dev/null
    SECONDS=0
    rm -rf "$folder.partial"
    apptainer --quiet build --sandbox "$folder.partial" "$CONVOY_IMAGE" > /dev/null
    inside "$folder.partial" image digest > /dev/null
    mv "$folder.partial" "$folder"
    echo "launch: the image is unpacked on $(hostname) after $SECONDS s: $folder" >&2
fi
echo "$folder"
