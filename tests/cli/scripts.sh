# The scripts that try a model, as part of run.sh.
name="a model through the whole program"
picture=$(find "$source/models/glyphs/sample" -name '*.png' | sort | head -n 1)
ESPALIER=$program PATTERNS=2:4 sh "$source/tools/try_model.sh" "$source/models/glyphs" tried images \
    "$source/models/glyphs/sample" "$picture" >out 2>err
code=$?
if [ "$code" = 0 ]; then ok; else bad "exit code $code, expected 0"; fi
for line in 'checksums verified' "$picture" '^top-1 ' 'same top label'; do
    if grep -q -e "$line" out; then ok; else bad "no line like '$line'"; fi
done
sh "$source/tools/try_model.sh" >out 2>err
code=$?
if [ "$code" = 2 ] && grep -q Usage err; then ok; else bad "exit code $code, expected 2 and the usage"; fi

# A program that does nothing and finds one folder damaged: the demo ends there, with its status.
cat >stub <<'END'
#!/bin/sh
case "$*" in
"verify demo/64-2-8 --strict")
    echo "stub: damaged" >&2
    exit 3
    ;;
verify*) echo "1 checksums verified" ;;
esac
END
chmod +x stub
mkdir demo
name="the demo ends where a folder does not verify"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 3 ]; then ok; else bad "exit code $code, expected 3"; fi
out_has '^64-2-5   1 checksums verified$'
out_lacks '^== the same prompt'
err_has 'damaged'
sed -i 's/^    exit 3$/    exit 0/' stub
name="the demo ends where verify says nothing"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 1 ]; then ok; else bad "exit code $code, expected 1"; fi
sed -i 's/^verify demo.*/nothing)/; s/^"verify demo.*/nothing)/' stub
name="the demo goes to its end"
ESPALIER_DEMO_FOLDER=demo sh "$source/tools/demo.sh" ./stub >out 2>err
code=$?
if [ "$code" = 0 ]; then ok; else bad "exit code $code, expected 0"; fi
out_has '^128-2-8  1 checksums verified$'
out_has '^Took [0-9]+ s after the build'
