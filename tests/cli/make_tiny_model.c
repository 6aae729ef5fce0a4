/* make_tiny_model FOLDER [KIND]: see tiny_model.h, tiny_bert.h and tiny_sam.h. */
#include "cli/tiny_bert.h"
#include "cli/tiny_sam.h"

int main(int argc, char **argv)
{
    if (argc < 2) {
        fputs("usage: make_tiny_model FOLDER [plain | nan | vocabulary | no-bos | bert | "
              "bert-dense-module | bert-plain | sam]\n",
              stderr);
        return 2;
    }
    const char *kind = argc > 2 ? argv[2] : "plain";
    bool made = strncmp(kind, "bert", 4) == 0 ? tiny_bert_write(argv[1], kind)
                : strcmp(kind, "sam") == 0    ? tiny_sam_write(argv[1])
                                              : tiny_model_write(argv[1], kind);
    return made ? 0 : 1;
}
